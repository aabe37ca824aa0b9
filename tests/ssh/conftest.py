"""Two hosts with an sshd each."""

from collections.abc import Iterator

import pytest

from tests.helpers.cluster import Cluster, cluster, lacks


@pytest.fixture(scope="session")
def hosts() -> Iterator[Cluster]:
    if reason := lacks(ssh=True):
        pytest.skip(reason)
    with cluster(nodes=2, gpus=0, sshd=1) as found:
        yield found
