"""What is done to runs that exist, with real ones: cancel, resume, status, logs."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.agent.hardware import hardware_here
from tests.end_to_end.conftest import SIXTY_STEPS
from tests.helpers.processes import command, launched, run_command, wait_until
from tests.helpers.runs import newest_weights, records


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
    arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """With its two node agents and its variables; the secret is asked for, and found nowhere."""
    secret = {"MY_TOKEN": "canary"}
    arguments = (*arguments, *SIXTY_STEPS, "--env", "MY_TOKEN", "--grace", "77")
    with launched(tmp_path, "parted", arguments, env=secret) as parted:
        parted.wait_for_step(3)
        control(tmp_path, "stop", "parted")
        assert parted.end()[0] == 75
    assert "MY_TOKEN: not set here" in control(tmp_path, "resume", "parted", code=3)
    assert "2 workers on cpu, 2 node agents" in control(tmp_path, "resume", "parted", env=secret)
    assert records(parted.run) == records(whole)
    assert newest_weights(parted.run) == newest_weights(whole)
    first, second = json.loads(parted.run.manifest.read_text())["launches"]
    assert (first["command"][-2:], second["command"][-2:]) == (["--run-dir", "parted"], ["resume", "parted"])
    assert first["hardware"] == second["hardware"] == hardware_here()
    assert all(b"canary" not in path.read_bytes() for path in parted.run.path.rglob("*") if path.is_file())
    assert "this run is finished; nothing to do" in control(tmp_path, "resume", "parted")
    assert json.loads(control(tmp_path, "resume", "parted", "--json"))["state"] == "finished"


def test_a_run_is_looked_at_while_it_trains_from_elsewhere_and_when_it_is_lost(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with launched(tmp_path, "runs/seed-0", arguments) as run:
        run.wait_for_step(2, ranks=2)
        screen = control(tmp_path, "status", "runs/seed-0")
        owner = json.loads(run.run.owner.read_text())
        write_json(run.run.owner, {**owner, "host": "elsewhere"})
        from_elsewhere = json.loads(control(tmp_path, "status", "runs/seed-0", "--json"))
        write_json(run.run.owner, owner)
        everything = [process.pid for process in run.everything()]
        run.process.kill()
        wait_until(lambda: not any(map(psutil.pid_exists, everything)), "the end of every process")
        run.process.wait()
    assert re.search(r"\nstate +training: step \d+ of 960, epoch 1 of 60, \d+ images/s\n", screen)
    assert f"process {run.process.pid} on " in screen
    assert re.search(
        r"\nattempts +1: running, 2 workers\nworkers +rank 0 .*: train, step \d+, heartbeat \d s ago\n", screen
    )
    assert (from_elsewhere["state"], "state inferred from the run's files" in from_elsewhere["who"]) == (
        "training",
        True,
    )
    assert control(tmp_path, "status", "runs").startswith("seed-0  lost: step ")
    assert control(tmp_path, "status", "runs/seed-0").endswith(f"fmfsd-launch resume {run.run.path}\n")


@dataclass(frozen=True)
class Followed:
    """A run that was stopped, what it printed, and what was heard by who followed its logs."""

    run: RunDir
    output: str
    heard: list[str]


@pytest.fixture(scope="module")
def followed(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Followed:
    folder = tmp_path_factory.mktemp("followed")
    with launched(folder, "run", (*arguments, "--env", "MY_TOKEN=canary")) as run:
        run.wait_for_step(1)
        follow = [command("fmfsd-launch"), "logs", "run", "--follow"]
        with subprocess.Popen(follow, cwd=folder, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            heard = [following.stdout.readline() for _ in range(4)]
            assert run.process.poll() is None
            control(folder, "stop", "run")
            code, output = run.end()
            assert code == 75
            heard += following.stdout.readlines()
        assert following.returncode == 0
    return Followed(run.run, output, heard)


def test_a_resumed_run_says_how_it_is_resumed(followed: Followed) -> None:
    """Not by its command, in which a secret is."""
    assert re.search(rf"; to go on: fmfsd-launch resume {followed.run.path}\n", followed.output)


def test_logs_are_followed_of_all_workers_until_the_run_has_ended(followed: Followed) -> None:
    run, heard = followed.run, followed.heard
    for node, rank in ((0, 0), (1, 1)):
        own = [line.removeprefix(f"[node {node} rank {rank}] ") for line in heard if f" rank {rank}]" in line]
        assert own == run.rank_log(node, rank).read_text().splitlines(keepends=True)
    assert any(line.endswith("INFO stopped\n") for line in heard)
    assert control(run.path.parent, "logs", "run", "--rank", "1", "--lines", "1") == heard_last(heard, 1)


def heard_last(heard: list[str], rank: int) -> str:
    return [line for line in heard if f" rank {rank}]" in line][-1]


@pytest.mark.parametrize("word", ["stop", "cancel", "resume", "status", "logs"])
def test_a_folder_that_is_no_run_is_left_alone(word: str, tmp_path: Path) -> None:
    for name in (".", "missing"):
        assert "no run directory" in control(tmp_path, word, name, code=3)
    assert not list(tmp_path.iterdir())
