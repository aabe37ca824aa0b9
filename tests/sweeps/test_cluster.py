"""An existing Ray cluster: two Ray nodes on this machine, one of which is killed during a sweep."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from fmfsd.system.atomic_files import read_json
from launcher.agent.available_resources import Resources
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.ray.cluster_resources import probe_machines
from launcher.tune.ray.ray_start import start_head, start_worker, stop
from launcher.tune.ray.ray_worker_node import is_listening
from tests.helpers.processes import wait_until
from tests.helpers.searches import EPOCH_STEPS, run_tune, start_sweep, trial_results
from tests.helpers.stub_training import StubTraining, stub_training

HERE = "127.0.0.1"
TRIALS = ("0002", "0003")
FAST_RAY = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "RAY_prestart_worker_first_driver": "0"}
"""Ray nodes exit without draining, and do not prestart workers."""


@dataclass
class RayNode:
    """The processes of one Ray node."""

    process: "Popen[bytes]"

    def kill(self) -> None:
        """Kill all Ray processes of the node; node agents exit by themselves."""
        for process in [*self._below(), psutil.Process(self.process.pid)]:
            with suppress(psutil.Error):
                if "ray" in " ".join(process.cmdline()) and "launcher.agent" not in process.cmdline():
                    process.kill()

    def end(self) -> None:
        below = self._below() if self.process.poll() is None else []
        stop(self.process)
        for child in below:
            with suppress(psutil.Error):
                child.kill()

    def _below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@dataclass
class RayCluster:
    """A Ray head with one core; `environment` has the variables to reach it, and those of the stub workers."""

    head: RayNode
    port: int
    folder: Path
    environment: dict[str, str]
    stub: StubTraining

    @property
    def address(self) -> str:
        return f"{HERE}:{self.port}"


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    with tempfile.TemporaryDirectory(prefix="fmfsd-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        token, stub = Path(folder) / "token", stub_training(Path(folder) / "stub")
        token.write_text("a1" * 32)
        token.chmod(0o600)
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        for name, value in {**auth, **stub.env, **FAST_RAY}.items():
            patch.setenv(name, value)
        with socket.create_server((HERE, 0)) as free:
            port = free.getsockname()[1]
        head = RayNode(start_head(HERE, port, Resources(1), Path(folder) / "head"))
        try:
            wait_until(lambda: is_listening(HERE, port), "Ray's head")
            yield RayCluster(head, port, Path(folder), {**auth, **stub.env}, stub)
        finally:
            head.end()


@pytest.fixture
def other(cluster: RayCluster) -> Iterator[RayNode]:
    """Yield a second Ray node, with two cores."""
    node = RayNode(start_worker(cluster.address, HERE, Resources(2), cluster.folder / "other"))
    try:
        sweep = SweepDir(cluster.folder / "sweep")
        wait_until(lambda: len(probe_machines(cluster.address, sweep)) == 2, "both nodes")
        yield node
    finally:
        node.end()


@pytest.mark.fault("F28")
def test_a_sweep_on_a_cluster_survives_the_loss_of_a_node_and_leaves_the_head_running(
    cluster: RayCluster, other: RayNode, stub_arguments: list[str], undisturbed: SweepDir, tmp_path: Path
) -> None:
    """At least one of two running trials is on the lost node, as the head has a single core."""
    hold_files = [cluster.stub.hold(trial, attempt=1, step=EPOCH_STEPS) for trial in TRIALS]
    argv = [*stub_arguments, "--ray-address", cluster.address]
    with start_sweep(*argv, cwd=tmp_path, env=cluster.environment) as running:
        running.wait_for(lambda: all(each.exists() for each in hold_files), "two trials under way")
        assert trial_results(running.sweep)
        workers = [psutil.Process(read_json(running.sweep.trial(trial).rank_progress(0))["pid"]) for trial in TRIALS]
        other.kill()
        running.wait_for(lambda: not all(worker.is_running() for worker in workers), "the loss of a worker")
        for each in hold_files:
            each.unlink()
        code, output, errors = running.wait_for_end()
    assert code == 0, output + errors
    assert trial_results(running.sweep) == trial_results(undisturbed)
    assert max(running.sweep.trial(trial).last_attempt() for trial in TRIALS) > 1
    assert cluster.head.process.poll() is None
    assert is_listening(HERE, cluster.port)


def test_more_trials_than_fit_on_a_cluster_are_refused(
    cluster: RayCluster, stub_arguments: list[str], tmp_path: Path
) -> None:
    argv = [*stub_arguments, "--ray-address", cluster.address]
    answer = run_tune(*argv, cwd=tmp_path, env=cluster.environment)
    assert answer.returncode == 3, answer.stderr
    assert "--concurrent: 2 at a time, but only 1 fit: a trial requests 1 x 1 cores" in answer.stderr
    assert not (tmp_path / "sweep").exists()


def test_an_unreachable_cluster_is_refused(stub_arguments: list[str], tmp_path: Path) -> None:
    with socket.create_server((HERE, 0)) as free:
        address = f"{HERE}:{free.getsockname()[1]}"
    answer = run_tune(*stub_arguments, "--ray-address", address, cwd=tmp_path, env=dict(os.environ))
    assert answer.returncode == 3, answer.stderr
    assert f"--ray-address {address}" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
