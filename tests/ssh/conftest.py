"""Two hosts with an sshd each."""

from collections.abc import Iterator

import pytest

from tests.helpers.cluster import Cluster, hosts_up, lacks, one_thread_a_worker


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    with one_thread_a_worker():
        yield


@pytest.fixture(scope="session")
def hosts() -> Iterator[Cluster]:
    if reason := lacks(ssh=True):
        pytest.skip(reason)
    with hosts_up(nodes=2, gpus=0, sshd=1) as found:
        yield found
