"""What is done to runs that exist, with real ones: cancel, resume, status, logs."""

import json
import re
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes import launched, run_command
from tests.helpers.runs import TINY, newest_weights, records


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """Two node agents, far from done and far from a checkpoint when a test interferes."""
    changes = (*TINY, f"data.root={tiny_root}", "data.shards=16", "train.batch=16", "train.epochs=60")
    every = ("train.evaluate_every=60 epochs", "checkpoint.every_epochs=60")
    settings = (part for change in (*changes, *every) for part in ("--set", change))
    return ("cifar100-resnet18", "--nodes", "2", "--gpus", "1", "--max-restarts", "0", *settings)


def control(cwd: Path, *words: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    """What `fmfsd-launch ...` says; it is to end with `code`."""
    done = run_command("fmfsd-launch", *words, cwd=cwd, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_run_that_is_cancelled_ends_at_once_and_without_a_checkpoint(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with launched(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        everything = [process.pid for process in run.everything()]
        assert control(tmp_path, "cancel", "run", "--wait") == "ended: interrupted\n"
        assert not any(map(psutil.pid_exists, everything))
        code, output = run.end()
    assert (code, "ending at once, as asked" in output) == (130, True)
    assert run.run.newest_step() is None
    gone = control(tmp_path, "cancel", "run", code=3)
    assert f"no launch is at work there; the last was process {run.process.pid} on " in gone


def test_a_stopped_run_resumes_as_it_was_launched_to_the_uninterrupted_result(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """With its two node agents and its variables; the secret is asked for, and found nowhere."""
    secret = {"MY_TOKEN": "canary"}
    arguments = (*arguments, "--set", "train.max_steps=14", "--env", "MY_TOKEN", "--grace", "77")
    with launched(tmp_path, "whole", arguments, env=secret) as whole:
        assert whole.end()[0] == 0
    with launched(tmp_path, "parted", arguments, env=secret) as parted:
        parted.wait_for_step(3)
        control(tmp_path, "stop", "parted")
        assert parted.end()[0] == 75
    assert "MY_TOKEN: not set here" in control(tmp_path, "resume", "parted", code=3)
    assert "2 workers on cpu, 2 node agents" in control(tmp_path, "resume", "parted", env=secret)
    assert records(parted.run) == records(whole.run)
    assert newest_weights(parted.run) == newest_weights(whole.run)
    first, second = json.loads(parted.run.manifest.read_text())["launches"]
    assert (first["command"][-2:], second["command"][-2:]) == (["--run-dir", "parted"], ["resume", "parted"])
    assert all(b"canary" not in path.read_bytes() for path in parted.run.path.rglob("*") if path.is_file())
    assert "this run is finished; nothing to do" in control(tmp_path, "resume", "parted")
    assert json.loads(control(tmp_path, "resume", "parted", "--json"))["state"] == "finished"


def test_a_resumed_run_says_how_it_is_resumed(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with launched(tmp_path, "run", (*arguments, "--env", "MY_TOKEN=canary")) as run:
        run.wait_for_step(1)
        control(tmp_path, "stop", "run")
        assert re.search(rf"; to go on: fmfsd-launch resume {run.run.path}\n", run.end()[1])


@pytest.mark.parametrize("word", ["stop", "cancel", "resume"])
def test_a_folder_that_is_no_run_is_left_alone(word: str, tmp_path: Path) -> None:
    for name in (".", "missing"):
        assert "no run directory" in control(tmp_path, word, name, code=3)
    assert not list(tmp_path.iterdir())
