"""Trials under a real Ray: the same runs as without it, over its nodes too, and nothing left when they end."""

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

from fmfsd.files import read_json
from fmfsd.rundir import RunDir
from launcher.tune.order import TrialOrder
from launcher.tune.sweep_dir import SweepDir
from tests.helpers.faulty import Moment, faulty
from tests.helpers.processes import launched, wait_until
from tests.helpers.runs import assert_records_agree, newest_weights, records
from tests.helpers.trials import CPU, order_of, small_sweep

TWO_NODES = replace(CPU, nodes=2, gpus=1)
EXACT = ("train.precision=fp64", "train.max_steps=20")
"""So that two workers differ from one by rounding that does not grow."""
TIMEOUT_S = 240


@pytest.fixture
def sweep(tmp_path: Path, tiny_root: Path) -> SweepDir:
    return small_sweep(tmp_path, tiny_root, *EXACT)


@dataclass
class Driven:
    """A driver under way, and the file that it was given."""

    process: subprocess.Popen[str]
    file: Path

    def wait_for(self, path: Path) -> None:
        """Until it is there."""

        def is_there() -> bool:
            assert self.process.poll() is None, "the driver has ended"
            return path.exists()

        wait_until(is_there, path.name)

    def end(self) -> dict[str, Any]:
        """What it found at the end, its results by the trials' names."""
        output, _ = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, output
        found = dict(json.loads(self.file.with_suffix(".out").read_text()))
        return {**found, **{json.loads(result["config"]["order"])["name"]: result for result in found["results"]}}


@contextmanager
def driven(folder: Path, *orders: TrialOrder, machines: int = 1, **asked: Any) -> Iterator[Driven]:
    """With a Ray of its own, whose sockets need a short path."""
    file, token, temporary = folder / "orders.json", folder / "token", tempfile.mkdtemp(prefix="r", dir="/tmp")
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    content = {"orders": [order.to_json() for order in orders], "machines": machines}
    file.write_text(json.dumps({**content, "max_failures": 0, "stop_early": [], "reuse": False, **asked}))
    own = {
        "TMPDIR": temporary,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray would have all that it starts give way to others
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.ray_driver", str(file)],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Driven(process, file)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> RunDir:
    """What a launch without Ray makes of the same config."""
    folder = tmp_path_factory.mktemp("whole")
    sweep = small_sweep(folder, tiny_root, *EXACT)
    with launched(folder, "run", (str(sweep.config), "--device", "cpu")) as run:
        code, output = run.end()
    assert code == 0, output
    return run.run


def test_trials_under_ray_are_the_runs_that_launches_would_be(whole: RunDir, sweep: SweepDir, tmp_path: Path) -> None:
    alone, pair = order_of(sweep, name="0000"), order_of(sweep, name="0001", launch=TWO_NODES)
    early, wrong = order_of(sweep, "train.epochs=1000", name="0002"), order_of(sweep, "distill.alpha=2", name="0003")
    with driven(tmp_path, alone, pair, early, wrong, stop_early=["0002"]) as driver:
        found = driver.end()
    assert records(alone.run) == records(whole)
    assert newest_weights(alone.run) == newest_weights(whole)
    assert_records_agree(records(pair.run), records(whole), tolerance=1e-6)
    assert [found[name]["state"] for name in ("0000", "0001", "0002", "0003")] == [
        *("finished", "finished", "running", "failed")
    ]
    assert found["0000"]["valid/deepest_top1"] == records(whole)[-1]["deepest_top1"]
    assert "distill.alpha: expected less than or equal to 1" in found["0003"]["cause"]
    assert read_json(early.run.outcome)["state"] == "interrupted"
    assert found["left"] == {"cores": 4, "agents": 0, "scratch": 0}


def holds_twice(moment: Moment) -> None:
    if moment.at in ((1, 0, 6), (2, 0, 17)):
        moment.hold()


@pytest.mark.fault("F28")
def test_a_trial_survives_kills_of_its_worker_and_of_its_actor(whole: RunDir, sweep: SweepDir, tmp_path: Path) -> None:
    """The worker's by an attempt of the run's own, the actor's by one of Ray's."""
    fault = faulty(tmp_path / "fault", holds_twice)
    order = order_of(sweep, env=fault.env)
    with driven(tmp_path, order, max_failures=1) as driver:
        driver.wait_for(fault.held(attempt=1, rank=0))
        psutil.Process(read_json(order.run.rank_progress(0))["pid"]).kill()
        driver.wait_for(fault.held(attempt=2, rank=0))
        actor = psutil.Process(read_json(order.run.owner)["pid"])
        below = actor.children(recursive=True)
        actor.kill()
        assert len(below) > 1
        assert psutil.wait_procs(below, timeout=10)[1] == []
        found = driver.end()
    assert (found["0000"]["state"], order.run.last_attempt()) == ("finished", 3)
    assert records(order.run) == records(whole)
    assert newest_weights(order.run) == newest_weights(whole)
    assert found["left"] == {"cores": 4, "agents": 0, "scratch": 0}


def test_a_trial_over_two_nodes_of_ray_meets_over_the_network(whole: RunDir, sweep: SweepDir, tmp_path: Path) -> None:
    order = order_of(sweep, launch=TWO_NODES)
    again = order_of(sweep, "train.max_steps=4", name="0001", launch=TWO_NODES)
    with driven(tmp_path, order, again, machines=2, reuse=True) as driver:
        found = driver.end()
    assert [found[name]["state"] for name in ("0000", "0001")] == ["finished", "finished"]
    assert found["0000"]["pid"] == found["0001"]["pid"]
    assert_records_agree(records(order.run), records(whole), tolerance=1e-6)
    assert records(again.run)[0] == records(order.run)[0]
    nodes = read_json(order.run.plan)["nodes"]
    assert [bool(node["host"]) for node in nodes] == [True, True]
    assert "--master-addr" in nodes[0]["argv"]
    assert found["left"] == {"cores": 2, "agents": 0, "scratch": 0}
