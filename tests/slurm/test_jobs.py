"""Jobs on a real Slurm cluster of two hosts: every way that one may end, and that the run goes on from there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fmfsd.rundir import RunDir
from launcher.hosts import srun
from launcher.hosts.agents import AGENT
from launcher.starters import DEEPSPEED, TORCHRUN
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.processes import run_command, wait_until
from tests.helpers.runs import newest_weights, records
from tests.helpers.slurm import Job, SlurmCluster

LIMIT = ("--time", "30")
NASTY = 'it\'s $(touch canary) `touch canary` "x"; [a] *'


def assert_same(one: RunDir, other: RunDir) -> None:
    assert records(one) == records(other)
    assert newest_weights(one) == newest_weights(other)


def launches(run: RunDir) -> list[Any]:
    """The job of each launch of a run; None for one outside of jobs."""
    return [entry.get("job") for entry in json.loads(run.manifest.read_text())["launches"]]


def in_job(job: Job, *restarts: int) -> list[Any]:
    return [None, *({"id": job.id, "restart": restart, "array_task": None} for restart in restarts)]


@contextmanager
def frozen(cluster: SlurmCluster, job: Job) -> Iterator[None]:
    """Its workers do nothing meanwhile, so that it can't end."""
    for name in ("STOP", "CONT"):
        for rank in (0, 1):
            cluster.signal_worker(job, rank, name)
        if name == "STOP":
            yield


def at(seconds: int) -> str:
    return (datetime.now() + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def test_a_job_that_loses_a_worker_makes_a_new_attempt_and_ends_as_undisturbed(
    cluster: SlurmCluster, training: tuple[str, ...], undisturbed: RunDir, tmp_path: Path
) -> None:
    folder = tmp_path / NASTY
    folder.mkdir()
    job = cluster.submit(folder, NASTY, *training, *LIMIT, "--env", f"NASTY={NASTY}\n")
    job.wait_for_step(5)
    pid = json.loads(job.run.rank_progress(1).read_text())["pid"]
    environment = cluster.on("n2", "cat", f"/proc/{pid}/environ")
    cluster.signal_worker(job, 1, "KILL")
    assert (job.end().state, job.restarts, job.run.last_attempt()) == ("COMPLETED", 0, 2)
    assert f"NASTY={NASTY}\n\0" in environment
    assert not list(tmp_path.rglob("canary"))
    assert launches(job.run) == in_job(job, 0)
    assert_same(job.run, undisturbed)


@pytest.mark.fault("F20", "F23")
def test_when_time_is_nearly_up_slurm_starts_the_job_again_and_it_ends_as_undisturbed(
    cluster: SlurmCluster, training: tuple[str, ...], undisturbed: RunDir, tmp_path: Path
) -> None:
    job = cluster.submit(tmp_path, "run", *training, *LIMIT)
    job.wait_for_step(3)
    with frozen(cluster, job):
        subprocess.run(["scontrol", "update", f"jobid={job.id}", f"EndTime={at(150)}"], check=True)
        wait_until(job.run.stop_request.exists, "the warning, which Slurm sends within 30 s")
    job.wait_for_restart(1)
    assert job.end().state == "COMPLETED"
    assert "the job's time is nearly up: Slurm starts job" in job.words
    assert launches(job.run) == in_job(job, 0, 1)
    assert_same(job.run, undisturbed)


@pytest.mark.fault("F21")
@pytest.mark.parametrize(
    ("starter", "module", "grace_s"),
    [("torchrun", TORCHRUN, 120), pytest.param("deepspeed", DEEPSPEED, 30, marks=needs_deepspeed)],
)
def test_a_job_is_cancelled_with_a_checkpoint_of_its_last_step_and_stays_so(
    starter: str, module: str, grace_s: int, cluster: SlurmCluster, long_training: tuple[str, ...], tmp_path: Path
) -> None:
    """DeepSpeed's launcher, which Slurm signals too, would kill its workers later than that."""
    job = cluster.submit(tmp_path, "run", *long_training, *LIMIT, "--starter", starter)
    job.wait_for_step(5)
    subprocess.run(["scancel", job.id], check=True)
    end = job.end()
    outcome = json.loads(job.run.outcome.read_text())
    assert (end.state, end.exit_code, job.restarts) == ("CANCELLED", 75, 0)
    assert (outcome["state"], outcome["step"]) == ("stopped", job.run.newest_step())
    assert "stopped after step" in job.words
    assert module in job.run.plan.read_text()
    assert json.loads(job.run.launch.read_text())["grace_s"] == grace_s


@pytest.mark.fault("F22")
def test_a_job_that_makes_place_for_another_goes_on_afterwards_from_its_checkpoint(
    cluster: SlurmCluster, long_training: tuple[str, ...], tmp_path: Path
) -> None:
    job = cluster.submit(tmp_path, "run", *long_training, *LIMIT)
    job.wait_for_step(10)
    urgent = ("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
    job.wait_for_restart(1)
    job.wait_for_step(1, attempt=2)
    went_on_after = job.progress()["went_on_after"]
    subprocess.run(["scancel", job.id], check=True)
    assert job.end().state == "CANCELLED"
    assert went_on_after >= 10


@pytest.mark.fault("F24")
def test_a_job_that_loses_a_node_goes_on_from_its_newest_checkpoint(
    cluster: SlurmCluster, long_training: tuple[str, ...], tmp_path: Path
) -> None:
    job = cluster.submit(tmp_path, "run", *long_training, *LIMIT)
    job.wait_for_step(10)
    cluster.do("crash", "n2", "told")
    cluster.do("boot", "n2")
    job.wait_for_restart(1)
    job.wait_for_step(1, attempt=2)
    went_on_after = job.progress()["went_on_after"]
    subprocess.run(["scancel", job.id], check=True)
    assert job.end().state == "CANCELLED"
    assert went_on_after >= 8
    assert launches(job.run) == in_job(job, 0, 1)


def test_who_waits_for_a_job_gets_its_failure_page_and_its_exit_code(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    answer = run_command(
        "fmfsd-launch",
        *training,
        *("--set", "optim.lr=1e30", "--nodes", "1", "--on", "slurm", "--device", "cpu", "--run-dir", "run", "--wait"),
        cwd=tmp_path,
    )
    assert answer.returncode == 1
    assert "run failed at" in answer.stdout
    assert "not finite" in answer.stdout


def test_seeds_are_runs_of_their_own_whose_jobs_share_both_hosts(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    job = cluster.submit(tmp_path, "sweep", *training, "--set", "train.epochs=4", *LIMIT, "--array", "3,5")
    tasks = [Job(cluster, f"{job.id}_{seed}", RunDir(tmp_path / "sweep" / f"seed-{seed}")) for seed in (3, 5)]
    for task in tasks:
        task.wait_for_step(1)
    assert [task.end().state for task in tasks] == ["COMPLETED", "COMPLETED"]
    assert [json.loads(task.run.manifest.read_text())["seed"] for task in tasks] == [3, 5]
    assert [launches(task.run)[1]["array_task"] for task in tasks] == [3, 5]
    assert newest_weights(tasks[0].run) != newest_weights(tasks[1].run)


def test_the_script_may_be_submitted_by_hand(cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "cluster" / "train.sbatch"
    options = ("--nodes=2", "--cpus-per-task=1", "--time=10")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["sbatch", "--wait", *options, str(script), *training, "--set", "train.epochs=2"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
    )
    (log,) = tmp_path.glob("fmfsd-*.log")
    (run,) = (tmp_path / "runs").iterdir()
    job = log.stem.removeprefix("fmfsd-")
    assert run.name == f"cifar100-resnet18-job{job}", log.read_text()
    assert json.loads((run / "outcome.json").read_text())["state"] == "finished", log.read_text()
    assert [entry["id"] for entry in launches(RunDir(run))] == [job]


def test_what_slurm_would_refuse_is_refused_before_anything_is_written(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    answer = run_command("fmfsd-launch", *training, "--on", "slurm", "--gpus", "4", "--run-dir", "run", cwd=tmp_path)
    assert answer.returncode == 3
    assert "Slurm refuses the job: allocation failure: Requested node configuration is not available" in answer.stderr
    assert not (tmp_path / "run").exists()


def test_edits_after_the_submission_do_not_change_a_job(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    job = cluster.submit(tmp_path, "run", *training, *LIMIT, "--sbatch-arg", "begin=now+1hour")
    (copy,) = job.run.source.iterdir()
    script = subprocess.run(["scontrol", "show", "job", job.id], capture_output=True, text=True, check=True).stdout
    subprocess.run(["scancel", job.id], check=True)
    assert f"Command={copy}/cluster/train.sbatch" in script
    assert (copy / "fmfsd" / "trainer.py").read_bytes() == Path("fmfsd/trainer.py").read_bytes()
    assert job.end().state == "CANCELLED"


@pytest.mark.parametrize("asked", ["--gpus-per-node=2", "--gpus-per-node=a100:2", "--gres=gpu:2", "--gres=gpu:a100:2"])
def test_an_agent_gets_all_gpus_that_the_job_has_on_its_node(asked: str, cluster: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "script"
    words = srun.command("n2", cores=2, deadline_s=1)
    assert words[-len(AGENT) - 2 :][: len(AGENT)] == AGENT
    step = (*words[: -len(AGENT) - 2], "printenv", "CUDA_VISIBLE_DEVICES")
    script.write_text(f"#!/bin/sh\n{' '.join(step)}\n")
    options = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", asked, f"--output={tmp_path}/out")
    subprocess.run(["sbatch", "--wait", *options, str(script)], check=True, capture_output=True)
    end = time.monotonic() + 10
    while not (tmp_path / "out").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "out").read_text() == "0,1\n"
