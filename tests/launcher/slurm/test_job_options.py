"""Batch jobs: time limits, array seeds, requeueing when the time is up, and the result of an ended job."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fmfsd.errors import CheckError, ConfigError, RunFailedError
from fmfsd.run.run_dir import RunDir
from launcher.agent.available_resources import Resources
from launcher.config.array_seeds import ArraySeeds
from launcher.config.launch_config import LaunchConfig, SlurmOptions
from launcher.launch_request import LaunchRequest, resolve_run_dir
from launcher.resources.allocation import Allocation
from launcher.resources.site import Site
from launcher.run_dir.manifest import list_uncommitted_files, read_commit
from launcher.slurm.batch_job import JobTask
from launcher.slurm.follow import FollowedJob, follow_jobs
from launcher.slurm.job_options import (
    LEAD_S,
    build_sbatch_options,
    parse_slurm_options,
    parse_time_limit,
    warning_lead_s,
)
from launcher.slurm.source_snapshot import SourceSnapshot
from launcher.slurm.submit import remove_new_runs_on_failure
from launcher.supervise.requeue import TIME_IS_UP, Requeue
from launcher.supervise.stop_requests import StopRequests
from launcher.transport import slurm_commands
from launcher.transport.slurm_job_state import JobState


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 300),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-0", 86_400),
        ("1-2:30", 95_400),
        ("0", float("inf")),
        ("x", None),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, expected: float | None) -> None:
    assert parse_time_limit(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0-2", (0, 1, 2)), ("1,5", (1, 5)), ("0-8:4", (0, 4, 8)), ("7", (7,)), ("3-4%1", (3, 4))]
)
def test_seeds_have_the_syntax_of_slurm_arrays(text: str, expected: tuple[int, ...]) -> None:
    assert ArraySeeds.parse(text).numbers == expected
    assert ArraySeeds.parse(str(ArraySeeds.parse(text))) == ArraySeeds.parse(text)


@pytest.mark.parametrize("text", ["", "a", "1-", "2-1", "1,,2", "0-99999999", "1%0"])
def test_invalid_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected up to"):
        ArraySeeds.parse(text)


@pytest.mark.parametrize(("takes_s", "expected"), [(None, LEAD_S), (10.0, LEAD_S), (100.0, 260)])
def test_the_warning_signal_comes_early_enough_for_the_measured_save(
    takes_s: float | None, expected: int, run: RunDir
) -> None:
    if takes_s is not None:
        run.rank_progress(0).write_text(json.dumps({"stop_takes_s": takes_s}))
    assert warning_lead_s(run) == expected


@pytest.mark.parametrize("min_nodes", [None, 1])
def test_only_elastic_jobs_outlive_their_nodes(min_nodes: int | None, tmp_path: Path) -> None:
    launch = LaunchConfig(nodes=2, min_nodes=min_nodes)
    request: dict[str, Any] = {
        "workers": 1,
        "device": "cpu",
        "cores": 2,
        "name": "run",
        "cwd": "/",
        "lead": LEAD_S,
        "seeds": None,
    }
    assert ("--no-kill" in build_sbatch_options(launch, log=tmp_path / "log", **request)) == (min_nodes is not None)


def test_harmless_options_of_newer_versions_are_passed_on(tmp_path: Path) -> None:
    more = ("requeue=expedite", "gres-flags=one-task-per-sharing", "segment=2", "oom-kill-step=0")
    options = parse_slurm_options({}, more=more, cpus_per_gpu=None, wait=False)
    launch = LaunchConfig(slurm=options)
    request: dict[str, Any] = {"workers": 1, "device": "cpu", "cores": 2, "name": "run", "cwd": "/", "lead": LEAD_S}
    arguments = build_sbatch_options(launch, log=tmp_path / "log", seeds=None, **request)
    assert {f"--{option}" for option in more} <= set(arguments)
    assert "--requeue" not in arguments
    assert "--requeue" in build_sbatch_options(LaunchConfig(), log=tmp_path / "log", seeds=None, **request)


@pytest.mark.parametrize(
    ("state", "is_waiting", "is_over"),
    [
        ("PENDING", True, False),
        ("REQUEUE_HOLD", True, False),
        ("EXPEDITING", True, False),
        ("PENDING,LAUNCH_FAILED", True, False),
        ("RUNNING", False, False),
        ("COMPLETING", False, False),
        ("COMPLETED,COMPLETING", False, False),
        ("COMPLETED", False, True),
        ("NODE_FAIL,LAUNCH_FAILED", False, True),
        ("NODE_FAIL,REQUEUED", True, False),
    ],
)
def test_job_states_of_all_slurm_versions_are_understood(state: str, is_waiting: bool, is_over: bool) -> None:
    parsed = JobState("7", state)
    assert (parsed.is_waiting, parsed.is_over) == (is_waiting, is_over)


@pytest.mark.parametrize("may_be_submitted", [False, True])
def test_runs_of_a_job_that_was_not_submitted_are_withdrawn(may_be_submitted: bool, tmp_path: Path) -> None:
    tasks = [cast(JobTask, SimpleNamespace(run=RunDir(tmp_path / f"seed-{seed}"))) for seed in (0, 1)]
    error = (
        slurm_commands.SlurmTimeoutError("no answer") if may_be_submitted else CheckError("in use by another launch")
    )

    def write_and_fail() -> None:
        with remove_new_runs_on_failure(tasks):
            tasks[0].run.create()
            tasks[0].run.config.write_text("")
            raise error

    with pytest.raises(CheckError):
        write_and_fail()
    assert tasks[0].run.is_unused() != may_be_submitted


def job(restarts: int, **more: Any) -> Allocation:
    return Allocation("7", "n1", cores=1, gpus=0, restarts=restarts, is_batch=True, **more)


def checkpoint(run: RunDir, step: int) -> None:
    (run.checkpoints / f"step-{step:08d}").mkdir()


def fake_requeue(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    job_ids = list[str]()

    def requeue(job_id: str) -> None:
        job_ids.append(job_id)
        raise CheckError("scontrol: it is disabled")

    monkeypatch.setattr(slurm_commands, "requeue", requeue)
    return job_ids


@pytest.mark.parametrize(("restarts", "progress"), [(0, False), (0, True), (3, True)])
def test_a_job_is_requeued_while_each_start_makes_progress(
    restarts: int, progress: bool, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_ids = fake_requeue(monkeypatch)
    checkpoint(run, 4)
    requeue = Requeue.create(job(restarts), lambda: run.newest_step() or 0)
    if progress:
        checkpoint(run, 5)
    with pytest.raises(CheckError, match="it is disabled"):
        requeue.requeue_job(TIME_IS_UP, lambda text: None)
    assert job_ids == ["7"]


def test_a_restarted_job_without_progress_is_not_requeued_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    job_ids = fake_requeue(monkeypatch)
    checkpoint(run, 4)
    with pytest.raises(RunFailedError, match="no newer checkpoint than when Slurm last requeued job 7"):
        Requeue.create(job(1), lambda: run.newest_step() or 0).requeue_job(TIME_IS_UP, lambda text: None)
    assert job_ids == []


@pytest.mark.parametrize(
    ("signals", "time_is_up"),
    [
        ((signal.SIGUSR1,), True),
        ((signal.SIGTERM,), False),
        ((signal.SIGUSR1, signal.SIGTERM), False),
        ((signal.SIGUSR1, signal.SIGINT), False),
    ],
)
def test_time_is_up_if_slurm_warns_and_no_other_signal_comes(
    signals: tuple[signal.Signals, ...], time_is_up: bool
) -> None:
    requests = StopRequests(in_job=True)
    with requests.install_handlers():
        for number in signals:
            os.kill(os.getpid(), number)
    assert (requests.is_stop_requested, requests.time_is_up) == (True, time_is_up)


@pytest.mark.parametrize(("file_first", "time_is_up"), [(True, False), (False, True)])
def test_a_run_that_a_user_stops_is_not_requeued_by_a_warning(file_first: bool, time_is_up: bool, run: RunDir) -> None:
    """After a warning, the stop-request file is the launcher's own message to its workers."""
    requests = StopRequests(in_job=True)
    run.stop_request.touch()
    acts = [partial(requests.check_files, run.stop_request), partial(os.kill, os.getpid(), signal.SIGUSR1)]
    with requests.install_handlers():
        for act in acts if file_first else reversed(acts):
            act()
    assert requests.time_is_up == time_is_up


def test_outside_of_jobs_sigusr1_is_not_handled() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequests().install_handlers():
        assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("array", "allocation", "expected"),
    [
        (None, job(0), "runs/smoke-job7"),
        (None, job(2, array_id="6", array_task=1), "runs/smoke-job6_1"),
        ("0-2", job(0, array_id="6", array_task=1), "runs/smoke-job6/seed-1"),
    ],
)
def test_the_run_directory_of_a_launch_in_a_job_has_the_jobs_id(
    array: str | None, allocation: Allocation, expected: str, tmp_path: Path
) -> None:
    launch = LaunchConfig(slurm=SlurmOptions(array=array))
    request = LaunchRequest("smoke", (), launch, Site(Resources(1)), "run", as_json=False)
    assert resolve_run_dir(request, str(tmp_path), allocation).path == tmp_path / expected


@pytest.mark.parametrize(
    ("state", "outcome", "expected"),
    [
        (JobState("7", "COMPLETED", exit_code=0), None, 0),
        (JobState("7", "FAILED", exit_code=3), None, 3),
        (JobState("7", "CANCELLED", exit_code=0), None, 1),
        (JobState("7", "CANCELLED", exit_code=0), {"state": "stopped", "attempt": 3}, 75),
        (JobState("7", "CANCELLED", exit_code=0), {"state": "finished", "attempt": 2}, 1),
        (JobState("7", "TIMEOUT", exit_code=0), {"state": "failed", "attempt": 3}, 1),
        (None, {"state": "finished", "attempt": 3}, 0),
    ],
)
def test_waiting_returns_the_exit_code_of_the_script_or_else_of_the_run(
    state: JobState | None, outcome: dict[str, Any] | None, expected: int, run: RunDir
) -> None:
    if outcome is not None:
        run.outcome.write_text(json.dumps(outcome))
    assert FollowedJob("7", run.logs / "log", run, attempts=2, state=state).exit_code() == expected


def test_interrupting_the_wait_prints_how_to_follow_the_job_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_id: str) -> JobState:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_commands, "query_job_state", interrupted)
    messages = list[str]()
    assert follow_jobs([FollowedJob("7", run.logs / "log", run, attempts=0)], messages.append) == 130
    assert messages == [f"job 7 continues; to follow it: tail -f {run.logs}/log; to cancel it: scancel 7"]


def test_log_lines_are_shown_complete_and_once(run: RunDir) -> None:
    followed = FollowedJob("7", run.logs / "log", run, attempts=0)
    assert followed.read_new_lines() == []
    followed.log.write_text("one\ntw")
    assert followed.read_new_lines() == ["one"]
    followed.log.write_text("one\ntwo\nend")
    assert followed.read_new_lines() == ["two"]
    followed.is_over = True
    assert followed.read_new_lines() == ["end"]


def test_a_source_snapshot_is_complete_and_has_its_commit_and_the_sites_env_file(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "env.sh").write_text("# ours\n")
    snapshot = SourceSnapshot.from_running_program(tmp_path / "site" / "env.sh")
    copy = snapshot.write(tmp_path)
    assert (copy / "cluster" / "env.sh").read_text() == "# ours\n"
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} - {"commit"} == set(
        snapshot.files
    )
    root = Path(__file__).parents[3]
    assert read_commit(copy) == read_commit(root)
    assert list_uncommitted_files(copy) == list_uncommitted_files(root)
    assert (snapshot.write(tmp_path), SourceSnapshot.from_running_program().digest != snapshot.digest) == (copy, True)


def test_a_run_in_an_interactive_allocation_is_always_new(tmp_path: Path) -> None:
    """Slurm does not requeue it, and a second launch there is another run."""
    request = LaunchRequest("smoke", (), LaunchConfig(), Site(Resources(1)), "run", as_json=False)
    run_dir = resolve_run_dir(request, str(tmp_path), replace(job(0), is_batch=False))
    assert run_dir.path.name.startswith("smoke-2")
