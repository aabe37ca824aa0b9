"""Signals to every kind of process: the run ends as documented, names the cause, and nothing of it lives on."""

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

from tests.helpers.processes import Launched, launched, run_command, wait_until
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
"""The launcher's exit code. TERM and INT have one handler in agents, torchrun and workers, and HUP and USR1 none, so
each pair is sent once. The launcher gets TERM in tests/end_to_end/test_endings.py."""

CAUSES = {
    "agent": "node 0: its agent is gone",
    "starter": "node 0: its starter was killed by SIG",
    "worker": "rank 1 (pid",
}
"""What the outcome and the last lines of the output name, if the run failed."""

CHOOSE: dict[str, Callable[[Launched], psutil.Process]] = {
    "launcher": lambda run: psutil.Process(run.process.pid),
    "agent": lambda run: run.agents()[0],
    "starter": lambda run: run.starter(0),
    "worker": lambda run: run.worker(1),
}


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """What is ignored here would be ignored by all that we start."""
    before = signal.signal(HUP, signal.SIG_DFL)
    yield
    signal.signal(HUP, before)


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """One node of two workers, far from done and far from a checkpoint when a test interferes."""
    changes = (*TINY, f"data.root={tiny_root}", "data.shards=16", "train.batch=16", "train.epochs=60")
    every = ("train.evaluate_every=60 epochs", "checkpoint.every_epochs=60")
    settings = (part for change in (*changes, *every) for part in ("--set", change))
    return ("cifar100-resnet18", *DIRECT, "--gpus", "2", "--max-restarts", "0", *settings)


def send(process: psutil.Process, number: signal.Signals) -> None:
    """An interrupt twice, as two within a second are one."""
    process.send_signal(number)
    if number == INT:
        time.sleep(1.1)
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def assert_stopped(run: Launched, output: str) -> None:
    """With one checkpoint, of the last step that was made, and with how long it took."""
    outcome = json.loads(run.run.outcome.read_text())
    assert (outcome["state"], outcome["step"]) == ("stopped", run.run.newest_step())
    assert len(list(run.run.checkpoints.iterdir())) == 1
    assert f"stopped after step {outcome['step']}" in output


def assert_failed(run: Launched, output: str, cause: str, arguments: tuple[str, ...]) -> None:
    """With the cause in the outcome and on the failure page, and with the command that resumes the run."""
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
    by_torchrun = victim == "starter" or (victim, number) == ("agent", KILL)  # the latter ends a chain of three
    if by_torchrun:
        arguments = (*arguments, "--starter", "torchrun")
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        everything = run.everything()
        assert len(everything) == (4 if by_torchrun else 3)
        if (victim, number) == ("launcher", INT):  # the first interrupt would have ended the run before the second
            for rank in (0, 1):
                run.worker(rank).suspend()
        send(CHOOSE[victim](run), number)
        sent = time.monotonic()
        code, output = run.end()
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
def test_two_terminations_at_once_of_every_process_are_one_graceful_stop(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """As srun signals every process, and torchrun passes it on."""
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        everyone = [run.process.pid, *(process.pid for process in run.everything())]
        for pid in (*everyone, *everyone):
            os.kill(pid, TERM)
        code, output = run.end()
    assert code == STOPPED, output
    assert_stopped(run, output)
    assert re.search(r"stopped after step \d+, \d+\.\d s after the request; to resume: fmfsd-launch ", output)


def test_a_run_is_stopped_from_outside(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """By whoever can write into its folder; once nobody works on it, there is nothing to stop."""
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(1)
        stop = run_command("fmfsd-launch", "stop", "run", "--wait", cwd=tmp_path)
        assert not is_alive(psutil.Process(run.process.pid))
        code, output = run.end()
    assert (stop.returncode, stop.stdout) == (0, "ended: stopped\n")
    assert code == STOPPED
    assert_stopped(run, output)
    again = run_command("fmfsd-launch", "stop", "run", cwd=tmp_path)
    assert again.returncode == 3
    assert f"no launch is active there; the last was process {run.process.pid} on " in again.stderr
    assert not run.run.stop_request.exists()
