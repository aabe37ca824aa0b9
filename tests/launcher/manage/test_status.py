"""The status of a run that is running, queued, ended or lost, from its run directory alone."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import STOP_NOW, RunDir
from fmfsd.system.atomic_files import write_json
from launcher.manage.render_status import render_status
from launcher.manage.stop import POLL_S, request_cancel, request_stop
from launcher.run_dir.activity import SILENCE_LIMIT_S, format_age
from launcher.run_dir.run_lock import Owner
from launcher.run_dir.status import RunStatus
from launcher.transport import slurm_commands
from launcher.transport.slurm_job_state import JobState
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import start_thread

ON_OTHER_HOST = replace(Owner.current(), host="elsewhere")
EXITED = replace(Owner.current(), born=1)


@pytest.fixture
def run(run: RunDir) -> RunDir:
    run.config.write_text("seed: 0\n")
    return run


def set_owner(run: RunDir, owner: Owner) -> None:
    write_json(run.owner, asdict(owner))


def worker(run: RunDir, state: str = "train", rank: int = 0, attempt: int = 1) -> None:
    steps = {"step": 150, "total_steps": 200, "steps_per_epoch": 100, "images_per_s": 400.4}
    identity = {"rank": rank, "host": "there", "pid": 100 + rank, "attempt": attempt, "state": state}
    write_json(run.rank_progress(rank), {**identity, **steps})


def attempt(run: RunDir, number: int = 1, state: str = "running", cause: str = "") -> None:
    content = {"attempt": number, "state": state, "cause": cause, "workers": 2, "started": 100.0}
    write_json(run.attempt(number), {**content, "ended": None if state == "running" else 130.0})


def outcome(run: RunDir, state: str, **more: Any) -> None:
    write_json(run.outcome, {"state": state, "attempt": 1, "resumable": state != "finished", **more})


def set_age(run: RunDir, seconds: float) -> None:
    """Set the modification times of all files to `seconds` ago."""
    for path in run.path.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def cluster(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that fakes Slurm's commands with states of the run's jobs, and returns the cancelled jobs."""
    cancelled: list[str] = []

    def with_jobs(*jobs: JobState) -> list[str]:
        write_json(run.jobs, {"jobs": [{"id": job.id, "submitted": 1.0, "command": [], "log": ""} for job in jobs]})
        states = {job.id: job for job in jobs}
        monkeypatch.setattr(slurm_commands, "query_job_state", states.get)
        monkeypatch.setattr(slurm_commands, "cancel", cancelled.append)
        return cancelled

    return with_jobs


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ("train", "training"),
        ("evaluate", "evaluating"),
        ("save", "saving"),
        ("setup", "starting"),
        ("stopped", "ending"),
    ],
)
def test_a_running_run_has_the_state_of_rank_0(reported: str, expected: str, run: RunDir) -> None:
    set_owner(run, Owner.current())
    attempt(run)
    worker(run, reported)
    assert RunStatus.read(run).state == expected
    assert f"state       {expected}: step 150 of 200, epoch 2 of 2, 400 images/s\n" in render_status(
        run.path, as_json=False
    )


def test_a_run_that_was_just_launched_is_starting(run: RunDir) -> None:
    """Progress files of an earlier attempt's workers are ignored."""
    set_owner(run, Owner.current())
    assert RunStatus.read(run).state == "starting"
    worker(run)
    attempt(run, state="failed", cause="rank 1: killed")
    assert (RunStatus.read(run).state, RunStatus.read(run).why) == (
        "starting",
        "again, after a failure: rank 1: killed",
    )
    attempt(run, 2)
    assert (RunStatus.read(run).state, RunStatus.read(run).workers) == ("starting", [])


def test_a_run_with_a_stop_request_is_stopping(run: RunDir) -> None:
    set_owner(run, Owner.current())
    run.stop_request.touch()
    assert RunStatus.read(run).state == "stopping"


@pytest.mark.parametrize("state", ["finished", "stopped", "interrupted"])
def test_an_ended_run_has_the_state_of_its_outcome(state: str, run: RunDir) -> None:
    set_owner(run, EXITED)
    outcome(run, state)
    status = RunStatus.read(run)
    assert (status.state, status.is_resumable) == (state, state != "finished")
    assert status.who.endswith(", no longer running")


def test_a_failed_run_shows_the_cause_and_how_to_resume(run: RunDir) -> None:
    """On one line, whatever characters the cause contains."""
    set_owner(run, EXITED)
    outcome(run, "failed", cause="rank 0: boom\n\x1b[2J", advice="less")
    text = render_status(run.path, as_json=False)
    assert "\nstate       failed: rank 0: boom / ; likely to help: less\n" in text
    assert text.endswith(f"\nto resume   fmfsd-launch resume {run.path}")


def test_a_run_whose_launcher_exited_without_an_outcome_is_lost(run: RunDir) -> None:
    set_owner(run, EXITED)
    worker(run)
    status = RunStatus.read(run)
    assert (status.state, status.is_resumable) == ("lost", True)


def test_the_state_of_a_run_on_another_host_depends_on_the_age_of_its_files(run: RunDir) -> None:
    set_owner(run, ON_OTHER_HOST)
    attempt(run)
    worker(run)
    assert RunStatus.read(run).state == "training"
    assert "; state inferred from the run's files, unchanged for " in RunStatus.read(run).who
    set_age(run, SILENCE_LIMIT_S + 30)
    assert RunStatus.read(run).state == "lost"
    assert RunStatus.read(run).who.endswith("unchanged for 3 min")
    worker(run)
    outcome(run, "stopped")
    assert RunStatus.read(run).state == "stopped"


def test_a_run_that_was_never_launched_is_new(run: RunDir) -> None:
    assert (RunStatus.read(run).state, RunStatus.read(run).who) == ("new", "none yet")


def test_a_pending_job_is_queued_with_slurms_reason(run: RunDir, cluster: Callable[..., list[str]]) -> None:
    """This also holds after an earlier launch. The job's own launch is starting until it owns the run."""
    set_owner(run, EXITED)
    outcome(run, "stopped")
    set_age(run, 60)
    cluster(JobState("7", "PENDING", reason="Resources", start="2026-11-23T12:00:00"))
    status = RunStatus.read(run)
    assert (status.state, status.progress) == ("queued", {})
    assert status.why == "job 7: PENDING (Resources), expected to start at 2026-11-23T12:00:00"
    cluster(JobState("7", "RUNNING", nodes="n1"))
    assert (RunStatus.read(run).state, RunStatus.read(run).why) == ("starting", "job 7: RUNNING on n1")
    set_owner(run, ON_OTHER_HOST)
    attempt(run)
    worker(run)
    assert RunStatus.read(run).state == "training"
    cluster(JobState("7", "COMPLETED"))
    outcome(run, "finished")
    assert RunStatus.read(run).state == "finished"


@pytest.mark.usefixtures("processes")
def test_if_slurm_does_not_answer_the_rest_is_shown(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    write_json(run.jobs, {"jobs": [{"id": "7"}]})
    set_owner(run, Owner.current())
    status = RunStatus.read(run)
    assert (status.state, status.jobs) == (
        "starting",
        ["scontrol: not found: is this machine a part of a Slurm cluster?"],
    )


def test_the_newest_checkpoint_and_the_last_evaluation_of_each_split_are_shown(run: RunDir) -> None:
    (run.checkpoints / "step-00000100").mkdir()
    (run.checkpoints / "step-00000150").mkdir()
    set_age(run, 600)
    records = [
        {"step": 100, "epoch": 1, "split": "valid", "deepest_top1": 0.25},
        {"step": 150, "epoch": 2, "split": "train", "loss": 1.0},
        {"step": 200, "epoch": 2, "split": "valid", "deepest_top1": 0.5, "ensemble_top1": 0.625},
    ]
    run.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records) + '{"split": "va')
    text = render_status(run.path, as_json=False)
    assert "\ncheckpoint  after step 150, 10 min old\n" in text
    assert "\nevaluated   valid after epoch 2: deepest 50.0%, ensemble 62.5%" in text


def test_of_many_workers_those_with_the_oldest_heartbeats_are_shown(run: RunDir) -> None:
    set_owner(run, Owner.current())
    attempt(run)
    for rank in range(12):
        worker(run, rank=rank)
    os.utime(run.rank_progress(11), (time.time() - 90,) * 2)
    text = render_status(run.path, as_json=False)
    assert "rank 11 (pid 111 on there): train, step 150, heartbeat 90 s ago\n            and 4 more" in text


def test_a_folder_of_runs_is_shown_as_a_line_per_run_in_natural_order(run: RunDir) -> None:
    for seed in (10, 9):
        other = RunDir(run.path / f"seed-{seed}")
        other.create()
        other.config.write_text("seed: 0\n")
    run.config.unlink()
    outcome(RunDir(run.path / "seed-9"), "finished")
    assert render_status(run.path, as_json=False) == "seed-9   finished\nseed-10  new: not started yet"
    assert [each["state"] for each in json.loads(render_status(run.path, as_json=True))] == ["finished", "new"]


def test_a_folder_without_runs_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="neither a run directory nor a folder of runs"):
        render_status(tmp_path, as_json=False)


def test_the_json_status_has_all_fields(run: RunDir) -> None:
    set_owner(run, Owner.current())
    attempt(run)
    worker(run)
    status = json.loads(render_status(run.path, as_json=True))
    assert (status["run"], status["state"], status["progress"]["step"]) == (str(run.path), "training", 150)
    assert status["workers"][0]["heartbeat_age_s"] < 60


@pytest.mark.parametrize("act", [request_stop, request_cancel])
def test_a_pending_job_is_cancelled(act: Callable[..., str], run: RunDir, cluster: Callable[..., list[str]]) -> None:
    cancelled = cluster(JobState("6", "COMPLETED"), JobState("7", "PENDING", reason="Priority"))
    assert act(run.path, wait=False) == "cancelled in Slurm: job 7: PENDING (Priority)"
    assert cancelled == ["7"]
    assert not run.stop_request.exists()


def test_a_running_job_gets_a_stop_request_and_is_not_cancelled(run: RunDir, cluster: Callable[..., list[str]]) -> None:
    """The job's coordinator stops all processes; Slurm would kill it while it does so."""
    cancelled = cluster(JobState("7", "RUNNING"))
    set_owner(run, ON_OTHER_HOST)
    assert request_cancel(run.path, wait=False).startswith("requested to end immediately: process ")
    assert (cancelled, run.stop_request.read_text()) == ([], STOP_NOW)
    assert request_stop(run.path, wait=False).startswith("requested to stop: process ")
    assert run.stop_request.read_text() == ""


def test_a_running_job_whose_launch_has_not_started_is_cancelled(
    run: RunDir, cluster: Callable[..., list[str]]
) -> None:
    """The launch may still be checking; once started, it reacts to Slurm's signal with a checkpoint."""
    cancelled = cluster(JobState("7", "RUNNING", nodes="n1"))
    assert request_stop(run.path, wait=False) == "cancelled in Slurm: job 7: RUNNING on n1"
    assert request_cancel(run.path, wait=False) == "cancelled in Slurm: job 7: RUNNING on n1"
    assert cancelled == ["7", "7"]


def test_a_silent_launch_on_another_host_still_gets_the_request(run: RunDir) -> None:
    set_owner(run, ON_OTHER_HOST)
    set_age(run, 3600 * 5)
    assert request_cancel(run.path, wait=False).endswith("unchanged for 5 h")
    assert run.stop_request.read_text() == STOP_NOW


def test_a_stop_on_another_host_is_awaited_until_the_next_launch_could_start(run: RunDir) -> None:
    set_owner(run, ON_OTHER_HOST)
    worker(run)

    messages: list[str] = []
    waiting = start_thread(lambda: messages.append(request_stop(run.path, wait=True)))
    wait_until(run.stop_request.exists, "stop request")
    outcome(run, "stopped")
    waiting.join(3 * POLL_S)
    assert waiting.is_alive()
    run.stop_request.unlink()
    waiting.join()
    assert messages == ["ended: stopped"]


@pytest.mark.usefixtures("processes")
def test_an_array_task_unknown_to_slurm_is_ignored(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scontrol show job 3_2` of Slurm 22.05 prints this and nothing on stderr."""
    for name, script in (("scontrol", "echo Job 3_2 not found"), ("sacct", ":")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\nexit 1\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    write_json(run.jobs, {"jobs": [{"id": "3_2"}]})
    assert RunStatus.read(run).jobs == []


def test_a_launch_that_ended_on_another_host_gets_no_request(run: RunDir) -> None:
    set_owner(run, ON_OTHER_HOST)
    outcome(run, "stopped")
    assert RunStatus.read(run).who == f"{ON_OTHER_HOST}, no longer running"
    for act in (request_stop, request_cancel):
        with pytest.raises(CheckError, match="no launch is active there; the last was process "):
            act(run.path, wait=False)
    assert not run.stop_request.exists()


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_ages_are_given_in_the_largest_unit_with_at_least_two(seconds: float, expected: str) -> None:
    assert format_age(seconds) == expected
