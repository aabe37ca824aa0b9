"""Two hosts with an sshd each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.rundir import RunDir
from tests.helpers.cluster import Cluster, hosts_up, lacks
from tests.helpers.launches import small_arguments
from tests.helpers.runs import SMALL, make_run, tiny_config, train_run
from tests.helpers.workers import run_workers


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
def whole(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """An uninterrupted run of two workers on this machine."""
    run = make_run(tmp_path_factory.mktemp("whole") / "run", tiny_config(tiny_root, *SMALL))
    run_workers(train_run, 2, run.path)
    return run
