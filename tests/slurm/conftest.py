"""Fixtures of the tests on a real Slurm cluster, which is started once for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.cluster import hosts_up, lacks
from tests.helpers.launches import tiny_arguments
from tests.helpers.runs import make_run, tiny_config, train_run
from tests.helpers.slurm import SETTINGS, SlurmCluster
from tests.helpers.workers import run_workers

SMALL = ("data.shards=16", "train.batch=16", "checkpoint.every_steps=8", "checkpoint.every_epochs=null")
SHORT = (*SMALL, "train.max_steps=24", "train.evaluate_every=24 steps")
LONG = (*SMALL, "train.epochs=100000", "train.evaluate_every=100000 epochs")
NODES = ("--nodes", "2", "--gpus", "1")


@pytest.fixture(scope="session")
def a_cluster() -> Iterator[SlurmCluster]:
    if reason := lacks(ssh=False):
        pytest.skip(reason)
    with hosts_up(**SETTINGS) as found:
        yield SlurmCluster(found.folder)


@pytest.fixture
def cluster(a_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """With nothing on it, before and after, and known to this process."""
    monkeypatch.setenv("SLURM_CONF", a_cluster.configuration)
    yield a_cluster
    a_cluster.clear()


@pytest.fixture(scope="session")
def training(tiny_root: Path) -> tuple[str, ...]:
    """The arguments of a run of 24 steps on two nodes."""
    return (*tiny_arguments(tiny_root, *SHORT, workers=(1, 2, 8)), *NODES)


@pytest.fixture(scope="session")
def long_training(tiny_root: Path) -> tuple[str, ...]:
    """The same, without an end that a test would see."""
    return (*tiny_arguments(tiny_root, *LONG), *NODES)


@pytest.fixture(scope="session")
def undisturbed(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run of `training` by two workers on this machine, which nobody disturbs."""
    run = make_run(tmp_path_factory.mktemp("undisturbed") / "run", tiny_config(tiny_root, *SHORT))
    run_workers(train_run, 2, run.path)
    return run
