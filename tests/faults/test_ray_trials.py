"""Trials under real Ray: equal to runs without Ray, also on several nodes, and without leftovers at their end."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.sweep.trial_spec import TrialSpec
from tests.helpers.processes import start_launch, wait_until
from tests.helpers.ray_driver import CORES
from tests.helpers.runs import DIRECT, assert_records_agree, newest_weights, read_records
from tests.helpers.stub_training import StubTraining, stub_training
from tests.helpers.trials import CPU, make_trial_spec, run_to_end, small_sweep

TWO_NODES = replace(CPU, nodes=2, gpus=1)
EXACT = ("train.precision=fp64", "train.max_steps=20")
"""In fp64 the rounding differences between one and two workers do not grow."""
TIMEOUT_S = 240.0
NO_LEFTOVERS = {"cores": sum(CORES), "agents": 0, "scratch": 0}
"""State of the Ray cluster without trials: all cores are free."""


@pytest.fixture
def sweep(tmp_path: Path, tiny_root: Path) -> SweepDir:
    return small_sweep(tmp_path, tiny_root, *EXACT)


@pytest.fixture
def stub(tmp_path: Path) -> StubTraining:
    return stub_training(tmp_path / "stub")


@dataclass
class TrialBatch:
    """The trials of `file`, which a driver executes."""

    process: subprocess.Popen[str]
    log: Path
    file: Path

    def wait_for(self, path: Path, deadline_s: float = 120.0) -> None:
        """Wait until `path` exists."""

        def exists() -> bool:
            assert self.process.poll() is None, f"the driver has ended: {self.log.read_text()}"
            return path.exists()

        wait_until(exists, path.name, deadline_s=deadline_s)

    def end(self) -> dict[str, Any]:
        """Wait for the end; return the driver's report, with the results by trial name."""
        result = self.file.with_suffix(".out")
        self.wait_for(result, TIMEOUT_S)
        report = read_json(result)
        return {**report, **{json.loads(each["config"]["order"])["name"]: each for each in report["results"]}}


@dataclass
class TrialDriver:
    """A driver process of trials with its own Ray cluster."""

    process: subprocess.Popen[str]
    log: Path

    def start(self, folder: Path, *orders: TrialSpec, **options: Any) -> TrialBatch:
        file, content = folder / f"{orders[0].name}.json", {"orders": [order.to_dict() for order in orders]}
        file.write_text(json.dumps({**content, "max_failures": 0, "stop_early": [], "reuse": False, **options}))
        assert self.process.stdin is not None
        print(file, file=self.process.stdin, flush=True)
        return TrialBatch(self.process, self.log, file)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialDriver]:
    with _temporary_folder() as temporary:
        folder = tmp_path_factory.mktemp("driver")
        token, log, ready = (folder / name for name in ("token", "log", "ready"))
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        variables = {
            "TMPDIR": temporary,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_worker_niceness": "0",  # Ray would lower the priority of all its workers
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.ray_driver", str(ready)],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            TrialBatch(process, log, ready).wait_for(ready)
            yield TrialDriver(process, log)
            process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
            process.communicate()


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Create a temporary folder with a short path, as Ray's sockets need."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> RunDir:
    """Return the run of a launch of the same config without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    sweep = small_sweep(folder, tiny_root, *EXACT)
    with start_launch(folder, "run", (str(sweep.config), "--device", "cpu", *DIRECT)) as run:
        code, output = run.wait_for_end()
    assert code == 0, output
    return run.run


def test_trials_under_ray_equal_launches_of_the_same_config(
    driver: TrialDriver, whole: RunDir, sweep: SweepDir, stub: StubTraining, tmp_path: Path
) -> None:
    """Two workers on one machine; then in parallel: one worker, a trial that is stopped early, an invalid trial."""
    pair = make_trial_spec(sweep, name="0001", launch=TWO_NODES)
    report = driver.start(tmp_path, pair).end()
    assert report["0001"]["state"] == "finished"
    assert_records_agree(read_records(pair.run), read_records(whole), tolerance=1e-6)
    assert [bool(node["host"]) for node in read_json(pair.run.plan)["nodes"]] == [False, False]
    early = make_trial_spec(sweep, "train.epochs=1000", "train.max_steps=null", name="0002", env=stub.env)
    stub.hold("0002", attempt=1, step=28)
    alone, wrong = make_trial_spec(sweep, name="0000"), make_trial_spec(sweep, "distill.alpha=2", name="0003")
    report = driver.start(tmp_path, alone, early, wrong, stop_early=["0002"]).end()
    assert read_records(alone.run) == read_records(whole)
    assert newest_weights(alone.run) == newest_weights(whole)
    assert [report[name]["state"] for name in ("0000", "0002", "0003")] == ["finished", "running", "failed"]
    assert report["0000"]["valid/deepest_top1"] == read_records(whole)[-1]["deepest_top1"]
    assert "distill.alpha: expected less than or equal to 1" in report["0003"]["cause"]
    assert read_json(early.run.outcome)["state"] == "interrupted"
    assert report["left"] == NO_LEFTOVERS


@pytest.mark.fault("F28")
def test_a_trial_survives_the_kill_of_its_worker_and_of_its_actor(
    driver: TrialDriver, sweep: SweepDir, stub: StubTraining, tmp_path: Path
) -> None:
    """The run restarts the worker in a new attempt, Ray restarts the actor."""
    order, undisturbed = (make_trial_spec(sweep, name=name, env=stub.env) for name in ("0000", "0001"))
    first, second = stub.hold("0000", attempt=1, step=6), stub.hold("0000", attempt=2, step=17)
    batch = driver.start(tmp_path, order, max_failures=1)
    batch.wait_for(first)
    psutil.Process(read_json(order.run.rank_progress(0))["pid"]).kill()
    batch.wait_for(second)
    actor = psutil.Process(read_json(order.run.owner)["pid"])
    below = actor.children(recursive=True)
    actor.kill()
    assert len(below) > 1
    assert psutil.wait_procs(below, timeout=10)[1] == []
    report = batch.end()
    assert (report["0000"]["state"], order.run.last_attempt()) == ("finished", 3)
    run_to_end(undisturbed)
    assert read_records(order.run) == read_records(undisturbed.run)
    assert report["left"] == NO_LEFTOVERS


def test_a_trial_on_two_ray_nodes_has_its_rendezvous_over_the_network(
    driver: TrialDriver, whole: RunDir, sweep: SweepDir, stub: StubTraining, tmp_path: Path
) -> None:
    """Its actors are reused for the next trial."""
    order = make_trial_spec(sweep, launch=TWO_NODES, cores=3)
    again = make_trial_spec(sweep, name="0001", launch=TWO_NODES, cores=3, env=stub.env)
    report = driver.start(tmp_path, order, again, reuse=True).end()
    assert [report[name]["state"] for name in ("0000", "0001")] == ["finished", "finished"]
    assert report["0000"]["pid"] == report["0001"]["pid"]
    assert_records_agree(read_records(order.run), read_records(whole), tolerance=1e-6)
    assert read_json(again.run.rank_progress(1))["state"] == "finished"
    for run in (order.run, again.run):
        assert [bool(node["host"]) for node in read_json(run.plan)["nodes"]] == [True, True]
    assert report["left"] == NO_LEFTOVERS
