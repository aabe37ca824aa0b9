"""Attempt fence: a worker that outlives its attempt, as on a frozen or disconnected node, can't write into the run."""

import hashlib
import signal
from pathlib import Path

import psutil
import pytest

from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.run.run_dir import RunDir
from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import run_command, start_launch, wait_until
from tests.helpers.runs import make_run, newest_weights, read_records, tiny_config, train_run

CHANGES = ("data.shards=16", "train.batch=16", "train.max_steps=24", "checkpoint.every_steps=4")


def holds_at_step_10(moment: Moment) -> None:
    if moment.attempt_rank_step == (1, 0, 10):
        moment.hold()


@pytest.mark.fault("F25")
def test_a_frozen_worker_that_wakes_up_after_a_new_attempt_changes_nothing(tiny_root: Path, tmp_path: Path) -> None:
    """Its launcher is killed, a second launch takes the run over, then the worker continues."""
    arguments = tiny_arguments(tiny_root, *CHANGES, workers=(1,))
    fault = inject_fault(tmp_path / "fault", holds_at_step_10)
    with start_launch(tmp_path, "run", (*arguments, "--starter", "torchrun"), env=fault.env) as old:
        wait_until(fault.hold_marker(attempt=1, rank=0).exists, "step 10")
        wait_until(lambda: old.run.newest_step() == 8, "checkpoint 8")
        agent, starter, worker = old.agents()[0], old.starter(0), old.worker(0)
        for process in (agent, starter, worker):
            process.suspend()
        old.signal(signal.SIGKILL)
        old.process.wait(10)
        again = run_command("fmfsd-launch", *arguments, "--run-dir", "run", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        before = _contents(old.run)
        assert old.run.last_attempt() == 2
        fault.release()
        worker.resume()
        wait_until(old.run.crash_report(1, 0).exists, "its last words")
        assert "attempt 2 of this run has started" in old.run.crash_report(1, 0).read_text()
        assert _contents(old.run) == before
        for process in (starter, agent):
            process.resume()
        psutil.wait_procs([agent, starter, worker], timeout=10)
    whole = make_run(tmp_path / "whole", tiny_config(tiny_root, *CHANGES))
    train_run(SingleWorkerComms(), whole.path)
    assert read_records(old.run) == read_records(whole)
    assert newest_weights(old.run) == newest_weights(whole)


def _contents(run: RunDir) -> dict[str, str]:
    """Return checksums of all files that a worker could corrupt."""
    files = [run.metrics, run.outcome, *run.checkpoints.rglob("*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
