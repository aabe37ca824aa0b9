"""Kills during a sweep: no process is left, no ended trial is repeated, and the results are those of an undisturbed
sweep."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from fmfsd.run.run_dir import STOP_NOW
from launcher.run_dir.sweep_dir import SweepDir
from tests.helpers.leaks import TEST_ID
from tests.helpers.processes import wait_until
from tests.helpers.searches import EPOCH_STEPS, SweepProcess, facts_of_kind, run_tune, start_sweep, trial_results
from tests.helpers.stub_training import StubTraining

PROCESSES = {
    "driver": ("launcher.tune.driver.driver",),
    "raylet": ("/raylet/raylet",),
    "worker": ("fmfsd", "train", "0003"),
    "gcs_server": ("/gcs/gcs_server",),
}
"""The processes to kill, by parts of their command lines."""


def kill_newest(running: SweepProcess, *parts: str) -> None:
    processes = running.wait_for(lambda: running.processes(*parts), f"a process {' '.join(parts)}")
    processes[-1].send_signal(signal.SIGKILL)


def have_same_results(sweep: SweepDir, undisturbed: SweepDir) -> bool:
    return trial_results(sweep) == trial_results(undisturbed) and len(facts_of_kind(sweep, "ended")) == len(
        facts_of_kind(undisturbed, "ended")
    )


@pytest.mark.fault("F26", "F27", "F28", "F29")
def test_a_sweep_recovers_from_the_kill_of_any_process(
    stub: StubTraining, stub_arguments: list[str], undisturbed: SweepDir, tmp_path: Path
) -> None:
    """One after the other, each time with an ended trial and a running one that has a new checkpoint."""
    holds = {
        victim: stub.hold("0003", attempt=number, step=number * EPOCH_STEPS)
        for number, victim in enumerate(PROCESSES, start=1)
    }
    with start_sweep(*stub_arguments, cwd=tmp_path, env=stub.env) as running:
        for victim, hold_file in holds.items():
            running.wait_for(hold_file.exists, f"the trial, before the kill of its {victim}")
            assert trial_results(running.sweep)
            kill_newest(running, *PROCESSES[victim])
        code, output, errors = running.wait_for_end()
    assert code == 0, output + errors
    assert have_same_results(running.sweep, undisturbed)
    assert running.sweep.trial("0003").last_attempt() == 1 + len(PROCESSES)
    assert (
        running.sweep.coordinator_dir.last_attempt() == 1 + len(PROCESSES) - 1
    )  # the trial itself replaces a killed worker


@pytest.mark.fault("F29")
def test_a_sweep_that_was_stopped_and_then_killed_ends_with_the_same_results(
    stub: StubTraining, stub_arguments: list[str], undisturbed: SweepDir, tmp_path: Path
) -> None:
    stopped, killed = (
        stub.hold("0003", attempt=attempt, step=step) for attempt, step in ((1, 5), (2, EPOCH_STEPS + 5))
    )
    with start_sweep(*stub_arguments, cwd=tmp_path, env=stub.env) as running:
        running.wait_for(stopped.exists, "a trial under way")
        running.process.send_signal(signal.SIGTERM)
        code, output, errors = running.wait_for_end()
    assert code == 75, output + errors
    assert f"fmfsd-tune --resume {running.sweep.path}" in output
    assert running.sweep.trial("0003").newest_step() == 6
    with start_sweep("--resume", str(running.sweep.path), cwd=tmp_path, env=stub.env) as running:
        running.wait_for(killed.exists, "the trial that goes on")
        running.process.kill()
        wait_until(lambda: not processes_of_test(str(tmp_path)), "the end of all processes of the sweep")
    with running.sweep.ledger.open("ab") as ledger:
        ledger.write(b'{"fact":"ended","trial":')
    answer = run_tune("--resume", str(running.sweep.path), cwd=tmp_path, env=stub.env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert have_same_results(running.sweep, undisturbed)
    assert [each["state"] for each in facts_of_kind(running.sweep, "ended")] == ["finished"] * 3


def processes_of_test(text: str) -> list[int]:
    """Return the ids of the processes that this test started and whose command line contains `text`."""
    mark = f"{TEST_ID}={os.environ[TEST_ID]}".encode()
    pids = []
    for process in psutil.process_iter():
        try:
            if text in " ".join(process.cmdline()) and mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                pids.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return pids


def test_a_cancelled_sweep_ends_at_once(stub: StubTraining, stub_arguments: list[str], tmp_path: Path) -> None:
    hold_file = stub.hold("0001", attempt=1, step=1)
    with start_sweep(*stub_arguments, cwd=tmp_path, env=stub.env) as running:
        running.wait_for(hold_file.exists, "a trial under way")
        running.sweep.coordinator_dir.stop_request.write_text(STOP_NOW)
        assert running.wait_for_end()[0] == 130


@pytest.mark.fault("F30")
def test_a_damaged_ledger_is_refused(undisturbed: SweepDir, tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "sweep")
    shutil.copytree(undisturbed.path, sweep.path)
    lines = sweep.ledger.read_bytes().splitlines(keepends=True)
    sweep.ledger.write_bytes(b"".join([lines[0], b"{\n", *lines[2:]]))
    answer = run_tune("--resume", str(sweep.path), cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (
        3,
        f"{sweep.ledger}:2: is not a valid fact: restore the line, or delete it\n",
    )
