"""Trackers of real runs: a worker that is killed, and a server that never answers."""

import json
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.launches import small_arguments
from tests.helpers.processes import LaunchProcess, start_launch, wait_until
from tests.helpers.tracked import read_metrics, read_tensorboard, read_wandb, to_float32


def holds_once(moment: Moment) -> None:
    if moment.attempt_rank_step == (1, 0, 6):
        moment.hold()


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    return small_arguments(tiny_root, workers=(1,))


def wandb_core(run: LaunchProcess) -> psutil.Process | None:
    """Return W&B's own process, or None."""
    return next((each for each in run.descendants() if each.name() == "wandb-core"), None)


def test_trackers_show_a_killed_and_resumed_run_like_an_undisturbed_one(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """No process of W&B outlives the worker."""
    fault = inject_fault(tmp_path / "fault", holds_once)
    options = (*arguments, "--set", "tracker=[tensorboard, wandb]", "--env", "WANDB_MODE=offline")
    with start_launch(tmp_path, "run", options, env=fault.env) as run:
        wait_until(fault.hold_marker(attempt=1, rank=0).exists, "step 6")
        core = wait_until(lambda: wandb_core(run), "W&B's process")
        run.worker(0).kill()
        psutil.wait_procs([core], timeout=5)
        assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE
        code, output = run.wait_for_end()
    assert (code, run.run.last_attempt(), "warning: tracker" in output) == (0, 2, False), output
    assert read_tensorboard(run.run) == to_float32(read_metrics(run.run))
    assert read_wandb(run.run) == read_metrics(run.run)


def test_an_unresponsive_tracker_server_causes_a_warning_after_the_outcome(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """The launch ends within the 10 s that trackers have."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        url = f"WANDB_BASE_URL=http://127.0.0.1:{server.getsockname()[1]}"
        key = ("--env", f"WANDB_API_KEY={'canary' * 7}")
        options = (*arguments, "--set", "tracker=[wandb]", "--env", url, *key)
        with start_launch(tmp_path, "run", options) as run:
            wait_until(run.run.outcome.exists, "the outcome")
            written = time.monotonic()
            code, output = run.wait_for_end()
    assert code == 0, output
    assert time.monotonic() - written < 40
    assert (
        "warning: tracker wandb failed and gets no more records: W&B has not taken all records 9 s after the run's end"
        in output
    )
    assert json.loads(run.run.outcome.read_text())["state"] == "finished"
    assert "canary" not in output
    assert not [path for path in run.run.path.rglob("*") if path.is_file() and b"canarycanary" in path.read_bytes()]
