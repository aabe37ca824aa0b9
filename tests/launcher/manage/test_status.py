"""What is said of a run that somebody works on, waits for, has ended or has lost, by its folder alone."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import NOW, RunDir
from fmfsd.system.atomic_files import write_json
from launcher.manage.render_status import shown
from launcher.manage.stop import LOOK_S, request_end, request_stop
from launcher.run_dir.activity import SILENT_S, age
from launcher.run_dir.run_lock import Owner
from launcher.run_dir.status import Status
from launcher.transport import slurm_commands
from launcher.transport.slurm_commands import JobState
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import meanwhile

ELSEWHERE = replace(Owner.me(), host="elsewhere")
GONE = replace(Owner.me(), born=1)


@pytest.fixture
def run(run: RunDir) -> RunDir:
    run.config.write_text("seed: 0\n")
    return run


def owned(run: RunDir, owner: Owner) -> None:
    write_json(run.owner, asdict(owner))


def worker(run: RunDir, state: str = "train", rank: int = 0, attempt: int = 1) -> None:
    steps = {"step": 150, "total_steps": 200, "steps_per_epoch": 100, "images_per_s": 400.4}
    told = {"rank": rank, "host": "there", "pid": 100 + rank, "attempt": attempt, "state": state}
    write_json(run.rank_progress(rank), {**told, **steps})


def attempt(run: RunDir, number: int = 1, state: str = "running", cause: str = "") -> None:
    told = {"attempt": number, "state": state, "cause": cause, "workers": 2, "started": 100.0}
    write_json(run.attempt(number), {**told, "ended": None if state == "running" else 130.0})


def outcome(run: RunDir, state: str, **more: Any) -> None:
    write_json(run.outcome, {"state": state, "attempt": 1, "resumable": state != "finished", **more})


def grow_old(run: RunDir, seconds: float) -> None:
    """As if nothing had been written for so long."""
    for path in run.path.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def cluster(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A stand-in for Slurm's commands, with these states of the run's jobs; the jobs that are cancelled."""
    cancelled: list[str] = []

    def with_jobs(*jobs: JobState) -> list[str]:
        write_json(run.jobs, {"jobs": [{"id": job.id, "submitted": 1.0, "command": [], "log": ""} for job in jobs]})
        states = {job.id: job for job in jobs}
        monkeypatch.setattr(slurm_commands, "job_state", states.get)
        monkeypatch.setattr(slurm_commands, "cancel", cancelled.append)
        return cancelled

    return with_jobs


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("train", "training"),
        ("evaluate", "evaluating"),
        ("save", "saving"),
        ("setup", "starting"),
        ("stopped", "ending"),
    ],
)
def test_a_run_under_way_is_where_its_first_worker_says(told: str, expected: str, run: RunDir) -> None:
    owned(run, Owner.me())
    attempt(run)
    worker(run, told)
    assert Status.of(run).state == expected
    assert f"state       {expected}: step 150 of 200, epoch 2 of 2, 400 images/s\n" in shown(run.path, as_json=False)


def test_a_run_that_has_just_been_begun_is_starting(run: RunDir) -> None:
    """What an earlier attempt's workers have left says nothing of it."""
    owned(run, Owner.me())
    assert Status.of(run).state == "starting"
    worker(run)
    attempt(run, state="failed", cause="rank 1: killed")
    assert (Status.of(run).state, Status.of(run).why) == ("starting", "again, after a failure: rank 1: killed")
    attempt(run, 2)
    assert (Status.of(run).state, Status.of(run).workers) == ("starting", [])


def test_a_run_that_was_asked_to_stop_is_stopping(run: RunDir) -> None:
    owned(run, Owner.me())
    run.stop_request.touch()
    assert Status.of(run).state == "stopping"


@pytest.mark.parametrize("state", ["finished", "stopped", "interrupted"])
def test_a_run_that_has_ended_has_its_outcome(state: str, run: RunDir) -> None:
    owned(run, GONE)
    outcome(run, state)
    found = Status.of(run)
    assert (found.state, found.is_resumable) == (state, state != "finished")
    assert found.who.endswith(", no longer running")


def test_a_failed_run_says_why_and_how_it_goes_on(run: RunDir) -> None:
    """In a line of its own, whatever the cause is made of."""
    owned(run, GONE)
    outcome(run, "failed", cause="rank 0: boom\n\x1b[2J", advice="less")
    text = shown(run.path, as_json=False)
    assert "\nstate       failed: rank 0: boom / ; likely to help: less\n" in text
    assert text.endswith(f"\nto go on    fmfsd-launch resume {run.path}")


def test_a_run_whose_owner_is_gone_without_an_outcome_is_lost(run: RunDir) -> None:
    owned(run, GONE)
    worker(run)
    found = Status.of(run)
    assert (found.state, found.is_resumable) == ("lost", True)


def test_a_run_of_another_host_is_judged_by_the_age_of_its_files(run: RunDir) -> None:
    owned(run, ELSEWHERE)
    attempt(run)
    worker(run)
    assert Status.of(run).state == "training"
    assert "; state inferred from the run's files, unchanged for " in Status.of(run).who
    grow_old(run, SILENT_S + 30)
    assert Status.of(run).state == "lost"
    assert Status.of(run).who.endswith("unchanged for 3 min")
    worker(run)
    outcome(run, "stopped")
    assert Status.of(run).state == "stopped"


def test_a_run_that_nobody_has_run_is_new(run: RunDir) -> None:
    assert (Status.of(run).state, Status.of(run).who) == ("new", "none yet")


def test_a_job_that_waits_is_queued_with_slurms_words(run: RunDir, cluster: Callable[..., list[str]]) -> None:
    """Also after an earlier launch; and its own is starting until it has claimed the run."""
    owned(run, GONE)
    outcome(run, "stopped")
    grow_old(run, 60)
    cluster(JobState("7", "PENDING", reason="Resources", start="2026-11-23T12:00:00"))
    found = Status.of(run)
    assert (found.state, found.progress) == ("queued", {})
    assert found.why == "job 7: PENDING (Resources), expected to start at 2026-11-23T12:00:00"
    cluster(JobState("7", "RUNNING", nodes="n1"))
    assert (Status.of(run).state, Status.of(run).why) == ("starting", "job 7: RUNNING on n1")
    owned(run, ELSEWHERE)
    attempt(run)
    worker(run)
    assert Status.of(run).state == "training"
    cluster(JobState("7", "COMPLETED"))
    outcome(run, "finished")
    assert Status.of(run).state == "finished"


@pytest.mark.usefixtures("processes")
def test_where_slurm_does_not_answer_the_rest_is_shown(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    write_json(run.jobs, {"jobs": [{"id": "7"}]})
    owned(run, Owner.me())
    found = Status.of(run)
    assert (found.state, found.jobs) == (
        "starting",
        ["scontrol: not found: is this machine a part of a Slurm cluster?"],
    )


def test_the_newest_checkpoint_and_the_last_evaluation_of_each_split_are_shown(run: RunDir) -> None:
    (run.checkpoints / "step-00000100").mkdir()
    (run.checkpoints / "step-00000150").mkdir()
    grow_old(run, 600)
    records = [
        {"step": 100, "epoch": 1, "split": "valid", "deepest_top1": 0.25},
        {"step": 150, "epoch": 2, "split": "train", "loss": 1.0},
        {"step": 200, "epoch": 2, "split": "valid", "deepest_top1": 0.5, "ensemble_top1": 0.625},
    ]
    run.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records) + '{"split": "va')
    text = shown(run.path, as_json=False)
    assert "\ncheckpoint  after step 150, 10 min old\n" in text
    assert "\nevaluated   valid after epoch 2: deepest 50.0%, ensemble 62.5%" in text


def test_of_many_workers_those_are_shown_that_were_silent_for_longest(run: RunDir) -> None:
    owned(run, Owner.me())
    attempt(run)
    for rank in range(12):
        worker(run, rank=rank)
    os.utime(run.rank_progress(11), (time.time() - 90,) * 2)
    text = shown(run.path, as_json=False)
    assert "rank 11 (pid 111 on there): train, step 150, heartbeat 90 s ago\n            and 4 more" in text


def test_a_folder_of_runs_is_a_line_each_in_their_order(run: RunDir) -> None:
    for seed in (10, 9):
        other = RunDir(run.path / f"seed-{seed}")
        other.create()
        other.config.write_text("seed: 0\n")
    run.config.unlink()
    outcome(RunDir(run.path / "seed-9"), "finished")
    assert shown(run.path, as_json=False) == "seed-9   finished\nseed-10  new: not started yet"
    assert [each["state"] for each in json.loads(shown(run.path, as_json=True))] == ["finished", "new"]


def test_a_folder_without_runs_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="no run directory, and there is none in it"):
        shown(tmp_path, as_json=False)


def test_a_status_in_json_is_all_that_is_known(run: RunDir) -> None:
    owned(run, Owner.me())
    attempt(run)
    worker(run)
    found = json.loads(shown(run.path, as_json=True))
    assert (found["run"], found["state"], found["progress"]["step"]) == (str(run.path), "training", 150)
    assert found["workers"][0]["heartbeat_age_s"] < 60


@pytest.mark.parametrize("act", [request_stop, request_end])
def test_a_job_that_waits_is_taken_from_the_queue(
    act: Callable[..., str], run: RunDir, cluster: Callable[..., list[str]]
) -> None:
    cancelled = cluster(JobState("6", "COMPLETED"), JobState("7", "PENDING", reason="Priority"))
    assert act(run.path, wait=False) == "taken from Slurm: job 7: PENDING (Priority)"
    assert cancelled == ["7"]
    assert not run.stop_request.exists()


def test_a_running_job_is_asked_and_not_cancelled(run: RunDir, cluster: Callable[..., list[str]]) -> None:
    """Its coordinator ends everything; Slurm would end it in the midst of that."""
    cancelled = cluster(JobState("7", "RUNNING"))
    owned(run, ELSEWHERE)
    assert request_end(run.path, wait=False).startswith("asked to end at once: process ")
    assert (cancelled, run.stop_request.read_text()) == ([], NOW)
    assert request_stop(run.path, wait=False).startswith("asked to stop: process ")
    assert run.stop_request.read_text() == ""


def test_a_job_whose_launch_is_not_heard_of_is_slurms_to_end(run: RunDir, cluster: Callable[..., list[str]]) -> None:
    """It may be at its checks; one that has begun answers Slurm's signal with a checkpoint."""
    cancelled = cluster(JobState("7", "RUNNING", nodes="n1"))
    assert request_stop(run.path, wait=False) == "taken from Slurm: job 7: RUNNING on n1"
    assert request_end(run.path, wait=False) == "taken from Slurm: job 7: RUNNING on n1"
    assert cancelled == ["7", "7"]


def test_who_may_live_in_silence_is_asked_all_the_same(run: RunDir) -> None:
    owned(run, ELSEWHERE)
    grow_old(run, 3600 * 5)
    assert request_end(run.path, wait=False).endswith("unchanged for 5 h")
    assert run.stop_request.read_text() == NOW


def test_a_stop_elsewhere_is_waited_for_until_another_launch_may_begin(run: RunDir) -> None:
    owned(run, ELSEWHERE)
    worker(run)

    said: list[str] = []
    waiting = meanwhile(lambda: said.append(request_stop(run.path, wait=True)))
    wait_until(run.stop_request.exists, "stop request")
    outcome(run, "stopped")
    waiting.join(3 * LOOK_S)
    assert waiting.is_alive()
    run.stop_request.unlink()
    waiting.join()
    assert said == ["ended: stopped"]


@pytest.mark.usefixtures("processes")
def test_a_task_that_slurm_has_forgotten_is_no_trouble(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `scontrol show job 3_2` of Slurm 22.05 says of it, without a word on stderr."""
    for name, words in (("scontrol", "echo Job 3_2 not found"), ("sacct", ":")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\nexit 1\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    write_json(run.jobs, {"jobs": [{"id": "3_2"}]})
    assert Status.of(run).jobs == []


def test_who_has_ended_elsewhere_is_not_asked(run: RunDir) -> None:
    owned(run, ELSEWHERE)
    outcome(run, "stopped")
    assert Status.of(run).who == f"{ELSEWHERE}, no longer running"
    for act in (request_stop, request_end):
        with pytest.raises(CheckError, match="no launch is at work there; the last was process "):
            act(run.path, wait=False)
    assert not run.stop_request.exists()


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_ages_are_said_in_the_largest_unit_of_which_there_are_two(seconds: float, expected: str) -> None:
    assert age(seconds) == expected
