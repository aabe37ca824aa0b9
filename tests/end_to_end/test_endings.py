"""Ends of a launch by real stop requests and real faults of its workers, and their reports.

Signals to single processes: tests/faults/test_signals.py.
"""

import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.run.run_dir import RunDir
from tests.end_to_end.conftest import SIXTY_STEPS
from tests.helpers.processes import LaunchProcess, run_command, start_launch
from tests.helpers.runs import newest_weights, read_records


def test_a_stopped_launch_exits_75_and_resumes_to_the_uninterrupted_result(
    arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    arguments = (*arguments, *SIXTY_STEPS)
    with start_launch(tmp_path, "parted", arguments) as parted:
        parted.wait_for_step(3)
        parted.signal(signal.SIGINT)
        code, output = parted.wait_for_end()
    assert (code, "stopped after step" in output) == (75, True)
    assert json.loads(parted.run.outcome.read_text())["state"] == "stopped"
    with start_launch(tmp_path, "parted", arguments) as again:
        assert again.wait_for_end()[0] == 0
    assert read_records(again.run) == read_records(whole)
    assert newest_weights(again.run) == newest_weights(whole)
    assert "attempt 2" in again.run.rank_log(1, 1).read_text()
    finished = run_command("fmfsd-launch", *arguments, "--run-dir", "parted", cwd=tmp_path)
    assert (finished.returncode, "this run is finished" in finished.stdout) == (0, True)
    changed = run_command("fmfsd-launch", *arguments, "--set", "seed=9", "--run-dir", "parted", cwd=tmp_path)
    assert (changed.returncode, "seed: 0 -> 9" in changed.stderr) == (2, True)


@pytest.mark.fault("F42")
def test_a_finished_run_may_be_extended_and_the_change_is_recorded(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The result equals that of a run that was longer from the start. Making it shorter is an error."""
    arguments = (*arguments, "--nodes", "1")
    steps = ("--set", "train.max_steps=4", "--set", "checkpoint.every_steps=2")
    longer = ("--set", "train.max_steps=6", "--set", "train.evaluate_every=2 steps")
    for run_dir, changes in (("parted", steps), ("parted", longer), ("whole", (*longer, *steps[2:]))):
        assert run_command("fmfsd-launch", *arguments, *changes, "--run-dir", run_dir, cwd=tmp_path).returncode == 0
    parted, whole = RunDir(tmp_path / "parted"), RunDir(tmp_path / "whole")
    assert read_records(parted)[-2:] == read_records(whole)[-2:]
    assert newest_weights(parted) == newest_weights(whole)
    first, second = json.loads(parted.manifest.read_text())["launches"]
    assert first["changes"] == []
    assert "train.max_steps: 4 -> 6" in second["changes"]
    back = run_command("fmfsd-launch", *arguments, *steps, "--run-dir", "parted", cwd=tmp_path)
    assert (back.returncode, "give 4 steps, and" in back.stderr) == (2, True)


@dataclass(frozen=True)
class TerminatedRun:
    """A run of two nodes that was ended by two SIGTERMs, its network connections, and a second launch made meanwhile.

    `second_requested_stop`: a stop request existed after the second launch.
    """

    run: LaunchProcess
    connections: list[Any]
    second: subprocess.CompletedProcess[str]
    second_requested_stop: bool
    code: int


@pytest.fixture(scope="module")
def terminated(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> TerminatedRun:
    folder, arguments = tmp_path_factory.mktemp("terminated"), (*arguments, "--starter", "torchrun")
    with start_launch(folder, "run", arguments) as run:
        run.wait_for_step(2, ranks=2)
        processes = [psutil.Process(run.process.pid), *run.descendants()]
        assert len(processes) >= 7
        connections = [each for process in processes for each in process.net_connections(kind="inet")]
        second = run_command("fmfsd-launch", *arguments, "--run-dir", "run", cwd=folder)
        second_requested_stop = run.run.stop_request.exists()
        for _ in range(2):
            run.signal(signal.SIGTERM)
        code, _ = run.wait_for_end()
    return TerminatedRun(run, connections, second, second_requested_stop, code)


@pytest.mark.fault("F38")
def test_sigterm_to_the_launcher_stops_the_run_with_a_checkpoint(terminated: TerminatedRun) -> None:
    assert terminated.code == 75
    assert len(list(terminated.run.run.checkpoints.glob("step-*"))) == 1


def test_on_one_machine_nothing_listens_outside_loopback(terminated: TerminatedRun) -> None:
    listening = {each.laddr.ip for each in terminated.connections if each.status == psutil.CONN_LISTEN}
    assert terminated.connections
    assert all(address.startswith("127.") or address == "::1" for address in listening), listening


@pytest.mark.fault("F33")
def test_a_second_launch_of_a_run_is_rejected_and_disturbs_nothing(terminated: TerminatedRun) -> None:
    first, second = terminated.run, terminated.second
    assert second.returncode == 3
    holder = rf"in use by another launch \(process {first.process.pid} on \S+, since 20.* UTC; attempt 1\)"
    assert re.search(holder, second.stderr)
    assert not terminated.second_requested_stop
    assert first.run.last_attempt() == 1


@pytest.fixture(scope="module")
def failed(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, str]:
    """Return a run that failed with a non-finite loss, and its output; restarts are allowed but would not help."""
    options = ("--max-restarts", "3", "--set", "optim.lr=1e30")
    with start_launch(tmp_path_factory.mktemp("failed"), "run", (*arguments, *options)) as run:
        code, output = run.wait_for_end()
    assert (code, run.run.last_attempt()) == (1, 1)
    return run.run, output


@pytest.mark.fault("F18")
def test_the_error_of_the_first_failed_worker_is_printed_last(failed: tuple[RunDir, str]) -> None:
    run, output = failed
    assert any("the loss is not finite in step" in line for line in output.splitlines()[-6:])
    assert "no attempt follows attempt 1: another attempt would fail in the same way" in output
    assert "Traceback" not in output
    assert not list(run.checkpoints.glob("step-*"))


def test_the_status_of_a_failed_run_contains_the_cause(failed: tuple[RunDir, str], tmp_path: Path) -> None:
    screen = run_command("fmfsd-launch", "status", str(failed[0].path), cwd=tmp_path).stdout
    assert re.search(r"\nstate +failed: step \d+ .*; rank [01] .*the loss is not finite in step ", screen)
    assert re.search(r"\nattempts +1: failed after \d+ s, 2 workers: rank [01] ", screen)


@pytest.mark.fault("F47")
def test_a_closed_output_pipe_does_not_end_the_run(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """As in `fmfsd-launch ... | head -1`."""
    with start_launch(tmp_path, "run", (*arguments, "--nodes", "1", "--set", "train.max_steps=2")) as run:
        assert run.process.stdout is not None
        assert run.process.stdout.readline().startswith("run: ")
        run.process.stdout.close()
        assert run.process.wait(120) == 0
    assert json.loads(run.run.outcome.read_text())["state"] == "finished"


@dataclass(frozen=True)
class Pair:
    """Two runs launched at the same time with the same command, folder and secret, and their output."""

    one: RunDir
    other: RunDir
    output: str


@pytest.fixture(scope="module")
def pair(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder, short = tmp_path_factory.mktemp("pair"), ("--set", "train.max_steps=3", "--env", "MY_TOKEN=canary")
    with (
        start_launch(folder, "one", (*arguments, *short)) as one,
        start_launch(folder, "other", (*arguments, *short)) as other,
    ):
        (first, output), (second, other_output) = one.wait_for_end(), other.wait_for_end()
    assert (first, second) == (0, 0)
    return Pair(one.run, other.run, output + other_output)


@pytest.mark.fault("F39")
def test_two_simultaneous_launches_of_the_same_config_do_not_interfere(pair: Pair) -> None:
    """Each launch has its own workers and rendezvous."""
    assert read_records(pair.one) == read_records(pair.other)
    assert newest_weights(pair.one) == newest_weights(pair.other)


def test_files_of_a_run_are_only_accessible_to_the_user(pair: Pair) -> None:
    everything = list(pair.one.path.rglob("*"))
    assert {path.stat().st_mode & 0o077 for path in (pair.one.path, *everything)} == {0}
    assert "canary" not in pair.output
    assert not [path for path in everything if path.is_file() and b"canary" in path.read_bytes()]
