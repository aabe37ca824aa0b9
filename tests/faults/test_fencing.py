"""A worker that outlived its attempt, as on a node that was cut off or frozen, can't write into the run any more."""

import hashlib
import signal
from pathlib import Path

import psutil
import pytest

from fmfsd.rundir import RunDir
from tests.helpers.processes import launched, run_command, wait_until
from tests.helpers.runs import TINY, newest_weights, records


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """One worker, which waits for nobody, with a checkpoint every few steps."""
    changes = (*TINY, f"data.root={tiny_root}", "data.shards=16", "train.batch=16", "train.epochs=60")
    steps = ("train.max_steps=200", "checkpoint.every_steps=20", "train.evaluate_every=100 steps")
    return ("cifar100-resnet18", *(part for change in (*changes, *steps) for part in ("--set", change)))


@pytest.mark.fault("F25")
def test_a_frozen_worker_that_wakes_up_after_its_run_went_on_changes_nothing(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Its launcher is gone, so that a second launch takes the run over; then it goes on where it stood."""
    with launched(tmp_path, "run", arguments) as old:
        old.wait_for_step(40)
        agent, starter, worker = old.agents()[0], old.starter(0), old.worker(0)
        for process in (agent, starter, worker):
            process.suspend()
        old.signal(signal.SIGKILL)
        old.process.wait(10)
        assert run_command("fmfsd-launch", *arguments, "--run-dir", "run", cwd=tmp_path).returncode == 0
        before = _contents(old.run)
        assert old.run.last_attempt() == 2
        worker.resume()
        wait_until(old.run.crash(1, 0).exists, "its last words")
        assert "attempt 2 has this run now" in old.run.crash(1, 0).read_text()
        assert _contents(old.run) == before
        for process in (starter, agent):
            process.resume()
        psutil.wait_procs([agent, starter, worker], timeout=10)
    with launched(tmp_path, "whole", arguments) as whole:
        assert whole.end()[0] == 0
    assert records(old.run) == records(whole.run)
    assert newest_weights(old.run) == newest_weights(whole.run)


def _contents(run: RunDir) -> dict[str, str]:
    """Sums of all that a worker could spoil."""
    files = [run.metrics, run.outcome, *run.checkpoints.rglob("*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
