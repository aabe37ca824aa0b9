"""Fixtures of the tests on a real Slurm cluster, which is started once for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.rundir import RunDir
from tests.helpers.cluster import hosts_up, lacks
from tests.helpers.processes import run_command
from tests.helpers.runs import TINY
from tests.helpers.slurm import SETTINGS, SlurmCluster

STEPS = 40


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
    """The arguments of a run of STEPS steps on two nodes."""
    return _arguments(tiny_root, f"train.epochs={STEPS // 4}", f"train.evaluate_every={STEPS} steps")


@pytest.fixture(scope="session")
def long_training(tiny_root: Path) -> tuple[str, ...]:
    """The same, without an end that a test would see."""
    return _arguments(tiny_root, "train.epochs=100000", "train.evaluate_every=100000 epochs")


def _arguments(root: Path, *changes: str) -> tuple[str, ...]:
    every = ("train.batch=64", "checkpoint.every_steps=8", "checkpoint.every_epochs=null", f"data.root={root}")
    changes = (*TINY, *every, *changes)
    sets = (part for change in changes for part in ("--set", change))
    return ("cifar100-resnet18", *sets, "--nodes", "2", "--gpus", "1")


@pytest.fixture(scope="session")
def undisturbed(training: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run of `training` on this machine, which nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    answer = run_command("fmfsd-launch", *training, "--run-dir", "run", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return RunDir(folder / "run")
