"""Commands for existing runs, on real ones: stop, cancel, resume, status, logs."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.agent.hardware_record import read_hardware_by_host
from tests.end_to_end.conftest import SIXTY_STEPS
from tests.helpers.processes import command, run_command, start_launch, wait_until
from tests.helpers.runs import newest_weights, read_records


def control(cwd: Path, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run `fmfsd-launch` with `arguments`, assert its exit code, and return its output."""
    done = run_command("fmfsd-launch", *arguments, cwd=cwd, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_cancelled_run_ends_immediately_without_a_checkpoint(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with start_launch(tmp_path, "run", arguments) as run:
        run.wait_for_step(1, ranks=2)
        everything = [process.pid for process in run.descendants()]
        assert control(tmp_path, "cancel", "run", "--wait") == "ended: interrupted\n"
        assert not any(map(psutil.pid_exists, everything))
        code, output = run.wait_for_end()
    assert (code, "ending immediately, as requested" in output) == (130, True)
    assert run.run.newest_step() is None
    output = control(tmp_path, "cancel", "run", code=3)
    assert f"no launch is active there; the last was process {run.process.pid} on " in output


def test_a_stopped_run_resumes_with_its_launch_options_to_the_uninterrupted_result(
    arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """With its two node agents and variables. The secret must be set again and is in no file of the run."""
    secret = {"MY_TOKEN": "canary"}
    arguments = (*arguments, *SIXTY_STEPS, "--env", "MY_TOKEN", "--grace", "77")
    with start_launch(tmp_path, "parted", arguments, env=secret) as parted:
        parted.wait_for_step(3)
        control(tmp_path, "stop", "parted")
        assert parted.wait_for_end()[0] == 75
    assert "MY_TOKEN: not set here" in control(tmp_path, "resume", "parted", code=3)
    assert "2 workers on cpu, 2 node agents" in control(tmp_path, "resume", "parted", env=secret)
    assert read_records(parted.run) == read_records(whole)
    assert newest_weights(parted.run) == newest_weights(whole)
    first, second = json.loads(parted.run.manifest.read_text())["launches"]
    assert (first["command"][-2:], second["command"][-2:]) == (["--run-dir", "parted"], ["resume", "parted"])
    assert first["hardware"] == second["hardware"] == read_hardware_by_host()
    assert all(b"canary" not in path.read_bytes() for path in parted.run.path.rglob("*") if path.is_file())
    assert "this run is finished; nothing to do" in control(tmp_path, "resume", "parted")
    assert json.loads(control(tmp_path, "resume", "parted", "--json"))["state"] == "finished"


def test_status_of_a_run_that_trains_on_another_host_or_is_lost(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with start_launch(tmp_path, "runs/seed-0", arguments) as run:
        run.wait_for_step(2, ranks=2)
        screen = control(tmp_path, "status", "runs/seed-0")
        owner = json.loads(run.run.owner.read_text())
        write_json(run.run.owner, {**owner, "host": "elsewhere"})
        from_elsewhere = json.loads(control(tmp_path, "status", "runs/seed-0", "--json"))
        write_json(run.run.owner, owner)
        everything = [process.pid for process in run.descendants()]
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
class FollowedRun:
    """A stopped run, its output, and the lines that `logs --follow` printed."""

    run: RunDir
    output: str
    log_lines: list[str]


@pytest.fixture(scope="module")
def followed(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> FollowedRun:
    folder = tmp_path_factory.mktemp("followed")
    with start_launch(folder, "run", (*arguments, "--env", "MY_TOKEN=canary")) as run:
        run.wait_for_step(1)
        follow = [command("fmfsd-launch"), "logs", "run", "--follow"]
        with subprocess.Popen(follow, cwd=folder, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            log_lines = [following.stdout.readline() for _ in range(4)]
            assert run.process.poll() is None
            control(folder, "stop", "run")
            code, output = run.wait_for_end()
            assert code == 75
            log_lines += following.stdout.readlines()
        assert following.returncode == 0
    return FollowedRun(run.run, output, log_lines)


def test_a_stopped_run_prints_the_resume_command(followed: FollowedRun) -> None:
    """The command is `resume`, as the launch command contains a secret."""
    assert re.search(rf"; to resume: fmfsd-launch resume {followed.run.path}\n", followed.output)


def test_logs_of_all_workers_are_followed_until_the_run_has_ended(followed: FollowedRun) -> None:
    run, log_lines = followed.run, followed.log_lines
    for node, rank in ((0, 0), (1, 1)):
        rank_lines = [
            line.removeprefix(f"[node {node} rank {rank}] ") for line in log_lines if f" rank {rank}]" in line
        ]
        assert rank_lines == run.rank_log(node, rank).read_text().splitlines(keepends=True)
    assert any(line.endswith("INFO stopped\n") for line in log_lines)
    assert control(run.path.parent, "logs", "run", "--rank", "1", "--lines", "1") == last_line_of(log_lines, 1)


def last_line_of(log_lines: list[str], rank: int) -> str:
    return [line for line in log_lines if f" rank {rank}]" in line][-1]


@pytest.mark.parametrize("subcommand", ["stop", "cancel", "resume", "status", "logs"])
def test_a_folder_that_is_not_a_run_is_left_alone(subcommand: str, tmp_path: Path) -> None:
    for name in (".", "missing"):
        assert "neither a run directory" in control(tmp_path, subcommand, name, code=3)
    assert not list(tmp_path.iterdir())
