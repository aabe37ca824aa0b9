"""Fixtures of the tests on a real Slurm cluster, which is started once per session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.cluster import cluster_skip_reason, hosts_up
from tests.helpers.launches import tiny_arguments
from tests.helpers.runs import make_run, tiny_config, train_run
from tests.helpers.slurm import SETTINGS, SlurmCluster
from tests.helpers.workers import run_workers

SMALL = ("data.shards=16", "train.batch=16", "checkpoint.every_steps=8", "checkpoint.every_epochs=null")
SHORT = (*SMALL, "train.max_steps=24", "train.evaluate_every=24 steps")
LONG = (*SMALL, "train.epochs=100000", "train.evaluate_every=100000 epochs")
NODES = ("--nodes", "2", "--gpus", "1")


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[SlurmCluster]:
    if reason := cluster_skip_reason(ssh=False):
        pytest.skip(reason)
    with hosts_up(**SETTINGS) as hosts:
        yield SlurmCluster(hosts.folder)


@pytest.fixture
def cluster(session_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Yield the cluster without jobs; Slurm's commands in this process use it."""
    monkeypatch.setenv("SLURM_CONF", session_cluster.configuration)
    yield session_cluster
    session_cluster.cancel_all_jobs()


@pytest.fixture(scope="session")
def training(tiny_root: Path) -> tuple[str, ...]:
    """Return the arguments of a run of 24 steps on two nodes."""
    return (*tiny_arguments(tiny_root, *SHORT, workers=(1, 2, 8)), *NODES)


@pytest.fixture(scope="session")
def long_training(tiny_root: Path) -> tuple[str, ...]:
    """Return the same arguments for a run that is too long to finish in a test."""
    return (*tiny_arguments(tiny_root, *LONG), *NODES)


@pytest.fixture(scope="session")
def undisturbed(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an uninterrupted run of `training` by two workers on this machine."""
    run = make_run(tmp_path_factory.mktemp("undisturbed") / "run", tiny_config(tiny_root, *SHORT))
    run_workers(train_run, 2, run.path)
    return run
