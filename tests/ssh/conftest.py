"""Two hosts with an sshd each."""

from collections.abc import Iterator

import pytest

from tests.helpers.cluster import Cluster, hosts_up, lacks


@pytest.fixture(scope="session")
def hosts() -> Iterator[Cluster]:
    if reason := lacks(ssh=True):
        pytest.skip(reason)
    with hosts_up(nodes=2, gpus=0, sshd=1) as found:
        yield found
