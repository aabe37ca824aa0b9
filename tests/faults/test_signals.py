"""Signals to every kind of process: the run ends as documented, reports the cause, and leaves no process."""

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes import LaunchProcess, run_command, start_launch, wait_until
from tests.helpers.runs import DIRECT, TINY

TERM, INT, HUP, USR1, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL
STOPPED, INTERRUPTED, FAILED = 75, 130, 1
GONE_WITHIN_S, ENDED_WITHIN_S = 5.0, 20.0

EXPECTED: dict[str, dict[signal.Signals, int]] = {
    "launcher": {INT: INTERRUPTED, HUP: STOPPED, USR1: -USR1, KILL: -KILL},
    "agent": {TERM: STOPPED, HUP: FAILED, KILL: FAILED},
    "starter": {INT: STOPPED, USR1: FAILED, KILL: FAILED},
    "worker": {TERM: STOPPED, KILL: FAILED},
}
"""The launcher's exit code. Agents, torchrun and workers have one handler for TERM and INT, and none for HUP and USR1,
so only one signal of each pair is sent. tests/end_to_end/test_endings.py sends TERM to the launcher."""

CAUSES = {
    "agent": "node 0: its agent is gone",
    "starter": "node 0: its starter was killed by SIG",
    "worker": "rank 1 (pid",
}
"""The cause in the outcome and in the last lines of the output, if the run failed."""

CHOOSE: dict[str, Callable[[LaunchProcess], psutil.Process]] = {
    "launcher": lambda run: psutil.Process(run.process.pid),
    "agent": lambda run: run.agents()[0],
    "starter": lambda run: run.starter(0),
    "worker": lambda run: run.worker(1),
}


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """Reset SIGHUP, as child processes inherit ignored signals."""
    before = signal.signal(HUP, signal.SIG_DFL)
    yield
    signal.signal(HUP, before)


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """Return a launch of two workers on one node that does not finish or save a checkpoint during a test."""
    changes = (*TINY, f"data.root={tiny_root}", "data.shards=16", "train.batch=16", "train.epochs=60")
    every = ("train.evaluate_every=60 epochs", "checkpoint.every_epochs=60")
    settings = (part for change in (*changes, *every) for part in ("--set", change))
    return ("cifar100-resnet18", *DIRECT, "--gpus", "2", "--max-restarts", "0", *settings)


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send the signal; SIGINT twice, more than a second apart, as closer ones count as one."""
    process.send_signal(number)
    if number == INT:
        time.sleep(1.1)
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def assert_stopped(run: LaunchProcess, output: str) -> None:
    """Assert that the run was stopped with one checkpoint, of its last step, and that the step is printed."""
    outcome = json.loads(run.run.outcome.read_text())
    assert (outcome["state"], outcome["step"]) == ("stopped", run.run.newest_step())
    assert len(list(run.run.checkpoints.iterdir())) == 1
    assert f"stopped after step {outcome['step']}" in output


def assert_failed(run: LaunchProcess, output: str, cause: str, arguments: tuple[str, ...]) -> None:
    """Assert that the outcome and the failure page contain the cause, and the page the command that resumes the run."""
    outcome = json.loads(run.run.outcome.read_text())
    assert (outcome["state"], outcome["resumable"]) == ("failed", True)
    assert cause in outcome["cause"]
    last_lines = output.splitlines()[-7:]
    assert any(line.startswith("run failed at") and cause in line for line in last_lines)
    assert "no attempt follows attempt 1: 0 restarts" in output
    assert last_lines[-1] == f"  fmfsd-launch {shlex.join(arguments)} --run-dir run"


@pytest.mark.fault("F1", "F5", "F6", "F37")
@pytest.mark.parametrize(
    ("victim", "number"),
    [pytest.param(victim, number, id=f"{victim}-{number.name}") for victim in EXPECTED for number in EXPECTED[victim]],
)
def test_a_signal_ends_the_run_as_documented_and_leaves_no_process(
    victim: str, number: signal.Signals, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    by_torchrun = victim == "starter" or (victim, number) == ("agent", KILL)  # torchrun and its workers must end too
    if by_torchrun:
        arguments = (*arguments, "--starter", "torchrun")
    with start_launch(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        everything = run.descendants()
        assert len(everything) == (4 if by_torchrun else 3)
        if (victim, number) == ("launcher", INT):  # else the first interrupt ends the run before the second
            for rank in (0, 1):
                run.worker(rank).suspend()
        send(CHOOSE[victim](run), number)
        sent = time.monotonic()
        code, output = run.wait_for_end()
        wait_until(lambda: not any(map(is_alive, everything)), "the end of every process", deadline_s=GONE_WITHIN_S)
    assert time.monotonic() - sent < ENDED_WITHIN_S
    assert code == EXPECTED[victim][number], output
    assert run.run.last_attempt() == 1
    if code == STOPPED:
        assert_stopped(run, output)
    if code == FAILED:
        assert_failed(run, output, CAUSES[victim], arguments)
    if code == INTERRUPTED:
        assert json.loads(run.run.outcome.read_text()) == {"state": "interrupted", "attempt": 1, "resumable": True}


@pytest.mark.fault("F38")
def test_two_simultaneous_sigterms_to_every_process_are_one_graceful_stop(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """As when srun signals every process and torchrun forwards the signal."""
    with start_launch(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        everyone = [run.process.pid, *(process.pid for process in run.descendants())]
        for pid in (*everyone, *everyone):
            os.kill(pid, TERM)
        code, output = run.wait_for_end()
    assert code == STOPPED, output
    assert_stopped(run, output)
    assert re.search(r"stopped after step \d+, \d+\.\d s after the request; to resume: fmfsd-launch ", output)


def test_a_run_is_stopped_by_the_stop_command(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Afterwards a second `stop` fails, as no launch is active."""
    with start_launch(tmp_path, "run", arguments) as run:
        run.wait_for_step(1)
        stop = run_command("fmfsd-launch", "stop", "run", "--wait", cwd=tmp_path)
        assert not is_alive(psutil.Process(run.process.pid))
        code, output = run.wait_for_end()
    assert (stop.returncode, stop.stdout) == (0, "ended: stopped\n")
    assert code == STOPPED
    assert_stopped(run, output)
    again = run_command("fmfsd-launch", "stop", "run", cwd=tmp_path)
    assert again.returncode == 3
    assert f"no launch is active there; the last was process {run.process.pid} on " in again.stderr
    assert not run.run.stop_request.exists()
