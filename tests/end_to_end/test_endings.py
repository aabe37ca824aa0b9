"""Every way a launch can end, with real torchrun, real workers and real signals: told truly, and nothing left."""

import json
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fmfsd.rundir import RunDir
from tests.helpers.processes import Launched, launched, run_command, wait_until
from tests.helpers.runs import TINY, newest_weights, records

NODES = ("--nodes", "2", "--gpus", "1", "--max-restarts", "0")


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """A launch of two nodes that is far from done when a test interferes."""
    changes = (*TINY, f"data.root={tiny_root}", "data.shards=16", "train.batch=16", "train.epochs=60")
    return ("cifar100-resnet18", *NODES, *(part for change in changes for part in ("--set", change)))


def test_a_stopped_launch_exits_75_and_goes_on_to_the_uninterrupted_result(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = (*arguments, "--set", "train.max_steps=14")
    with launched(tmp_path, "whole", arguments) as whole:
        assert whole.end()[0] == 0
    with launched(tmp_path, "parted", arguments) as parted:
        parted.wait_for_step(3)
        parted.signal(signal.SIGINT)
        code, output = parted.end()
    assert (code, "stopped after step" in output) == (75, True)
    assert json.loads(parted.run.outcome.read_text())["state"] == "stopped"
    with launched(tmp_path, "parted", arguments) as again:
        assert again.end()[0] == 0
    assert records(again.run) == records(whole.run)
    assert newest_weights(again.run) == newest_weights(whole.run)
    assert "attempt 2" in again.run.rank_log(1, 1).read_text()
    finished = run_command("fmfsd-launch", *arguments, "--run-dir", "parted", cwd=tmp_path)
    assert (finished.returncode, "this run is finished" in finished.stdout) == (0, True)
    changed = run_command("fmfsd-launch", *arguments, "--set", "seed=9", "--run-dir", "parted", cwd=tmp_path)
    assert (changed.returncode, "seed: 0 -> 9" in changed.stderr) == (2, True)


@pytest.mark.fault("F42")
def test_a_finished_run_may_be_made_longer_and_that_is_recorded(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """To the result of one that was longer from the start; and not shorter than it is."""
    steps = ("--set", "train.max_steps=4", "--set", "checkpoint.every_steps=2")
    longer = ("--set", "train.max_steps=6", "--set", "train.evaluate_every=2 steps")
    for run_dir, changes in (("parted", steps), ("parted", longer), ("whole", (*longer, *steps[2:]))):
        assert run_command("fmfsd-launch", *arguments, *changes, "--run-dir", run_dir, cwd=tmp_path).returncode == 0
    parted, whole = RunDir(tmp_path / "parted"), RunDir(tmp_path / "whole")
    assert records(parted)[-2:] == records(whole)[-2:]
    assert newest_weights(parted) == newest_weights(whole)
    first, second = json.loads(parted.manifest.read_text())["launches"]
    assert first["changes"] == []
    assert "train.max_steps: 4 -> 6" in second["changes"]
    back = run_command("fmfsd-launch", *arguments, *steps, "--run-dir", "parted", cwd=tmp_path)
    assert (back.returncode, "make 4 steps, and" in back.stderr) == (2, True)


def launcher(run: Launched) -> psutil.Process:
    return psutil.Process(run.process.pid)


KILLED = {
    "launcher": (launcher, -9, ""),
    "agent": (lambda run: run.agents()[0], 1, "node 0: its agent is gone"),
    "torchrun": (lambda run: run.starter(1), 1, "node 1: its starter was killed by SIGKILL"),
    "worker": (lambda run: run.worker(1), 1, "rank 1 (pid"),
}


@pytest.mark.fault("F1", "F5", "F6")
@pytest.mark.parametrize("victim", KILLED)
def test_a_kill_ends_everything_and_the_cause_is_named(victim: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A kill -9 of any process of the tree."""
    choose: Callable[[Launched], psutil.Process]
    choose, expected, cause = KILLED[victim]
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(2, ranks=2)
        everything = run.everything()
        start = time.monotonic()
        choose(run).kill()
        code, output = run.end()
        wait_until(lambda: not any(map(_alive, everything)), "the end of every process", deadline_s=5)
    assert time.monotonic() - start < 20
    assert code == expected
    assert cause in output
    if code == 1:
        outcome = json.loads(run.run.outcome.read_text())
        assert (outcome["state"], outcome["resumable"]) == ("failed", True)
        assert cause in outcome["cause"]
        assert any(line.startswith("run failed at") and cause in line for line in output.splitlines()[-7:])
        assert output.splitlines()[-1] == f"  fmfsd-launch {shlex.join(arguments)} --run-dir run"


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.fault("F38")
def test_a_termination_of_the_launcher_stops_the_run_with_a_checkpoint(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(2)
        for _ in range(2):
            run.signal(signal.SIGTERM)
        code, _ = run.end()
    assert code == 75
    assert len(list(run.run.checkpoints.glob("step-*"))) == 1


@pytest.mark.fault("F37")
def test_a_second_interrupt_ends_at_once(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The workers are stopped, so that they can't react to the first."""
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        for rank in (0, 1):
            run.worker(rank).suspend()
        run.signal(signal.SIGINT)
        wait_until(run.run.stop_request.exists, "stop request")
        time.sleep(1.1)  # two interrupts within a second count as one
        run.signal(signal.SIGINT)
        start = time.monotonic()
        code, _ = run.end()
    assert code == 130
    assert time.monotonic() - start < 5
    assert json.loads(run.run.outcome.read_text()) == {"state": "interrupted", "attempt": 1, "resumable": True}


@pytest.mark.fault("F18")
def test_the_first_failing_workers_own_error_comes_last(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with launched(tmp_path, "run", (*arguments, "--set", "optim.lr=1e30")) as run:
        code, output = run.end()
    assert code == 1
    assert any("the loss is not finite in step" in line for line in output.splitlines()[-6:])
    assert "Traceback" not in output
    assert not list(run.run.checkpoints.glob("step-*"))


def test_on_one_machine_nothing_listens_outside_loopback(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        processes = [psutil.Process(run.process.pid), *run.everything()]
        assert len(processes) >= 7
        connections = [each for process in processes for each in process.net_connections(kind="inet")]
        listening = {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
        assert connections
        assert all(address.startswith("127.") or address == "::1" for address in listening), listening
        run.signal(signal.SIGTERM)
        run.end()


def test_files_of_a_run_are_for_the_user_alone(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with launched(tmp_path, "run", (*arguments, "--set", "train.max_steps=2", "--env", "MY_TOKEN=canary")) as run:
        code, output = run.end()
    assert code == 0
    everything = list(run.run.path.rglob("*"))
    assert {path.stat().st_mode & 0o077 for path in (run.run.path, *everything)} == {0}
    assert "canary" not in output
    assert not [path for path in everything if path.is_file() and b"canary" in path.read_bytes()]


@pytest.mark.fault("F33")
def test_a_second_launch_of_a_run_is_refused_and_disturbs_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(1)
        second = run_command("fmfsd-launch", *arguments, "--run-dir", "run", cwd=tmp_path)
        assert second.returncode == 3
        holder = rf"another launch is at work there \(process {run.process.pid} on \S+, since 20.* UTC; attempt 1\)"
        assert re.search(holder, second.stderr)
        assert not run.run.stop_request.exists()
        run.signal(signal.SIGTERM)
        assert run.end()[0] == 75
    assert run.run.last_attempt() == 1


@pytest.mark.fault("F47")
def test_a_reader_that_goes_away_does_not_end_the_run(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """As in `fmfsd-launch ... | head -1`."""
    with launched(tmp_path, "run", (*arguments, "--set", "train.max_steps=2")) as run:
        assert run.process.stdout is not None
        assert run.process.stdout.readline().startswith("run: ")
        run.process.stdout.close()
        assert run.process.wait(120) == 0
    assert json.loads(run.run.outcome.read_text())["state"] == "finished"


@pytest.mark.fault("F39")
def test_two_launches_of_the_same_at_once_keep_apart(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The same command, folder and moment: each has workers and a meeting place of its own."""
    short = (*arguments, "--set", "train.max_steps=3")
    with launched(tmp_path, "one", short) as one, launched(tmp_path, "other", short) as other:
        assert [run.end()[0] for run in (one, other)] == [0, 0]
    assert records(one.run) == records(other.run)
    assert newest_weights(one.run) == newest_weights(other.run)
