"""Two hosts with an sshd each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.rundir import RunDir
from tests.helpers.cluster import Cluster, hosts_up, lacks
from tests.helpers.processes import launched
from tests.helpers.runs import small_arguments


@pytest.fixture(scope="session")
def hosts() -> Iterator[Cluster]:
    if reason := lacks(ssh=True):
        pytest.skip(reason)
    with hosts_up(nodes=2, gpus=0, sshd=1) as found:
        yield found


@pytest.fixture(scope="session")
def arguments(tiny_root: Path) -> tuple[str, ...]:
    return small_arguments(tiny_root)


@pytest.fixture(scope="session")
def whole(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """An uninterrupted run of two workers on this machine."""
    with launched(tmp_path_factory.mktemp("whole"), "run", (*arguments, "--nodes", "2", "--gpus", "1")) as run:
        assert run.end()[0] == 0
    return run.run
