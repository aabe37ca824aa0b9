"""Jobs on a real Slurm cluster of two hosts: every way in which a job can end, and resuming the run afterwards."""

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fmfsd.run.run_dir import RunDir
from launcher.plan.starters import DEEPSPEED, TORCHRUN
from launcher.transport import slurm_commands, srun
from launcher.transport.agent_client import AGENT_COMMAND
from tests.helpers.container import HOST as INSIDE
from tests.helpers.container import container_skip_reason, write_container
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.processes import command, run_command, wait_until
from tests.helpers.runs import newest_weights, read_records
from tests.helpers.slurm import SlurmCluster, SlurmJob

LIMIT = ("--time", "30")
NASTY = 'it\'s $(touch canary) `touch canary` "x"; [a] *'


def assert_same(one: RunDir, other: RunDir) -> None:
    assert read_records(one) == read_records(other)
    assert newest_weights(one) == newest_weights(other)


def launches(run: RunDir) -> list[Any]:
    """Return the job of each launch of a run; None for a launch outside of jobs."""
    return [entry.get("job") for entry in json.loads(run.manifest.read_text())["launches"]]


def in_job(job: SlurmJob, *restarts: int) -> list[Any]:
    return [None, *({"id": job.id, "restart": restart, "array_task": None} for restart in restarts)]


def slurm_time(seconds: int) -> str:
    return (datetime.now() + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def hold_then_wait_for_stop_in_attempt_2(moment: Moment) -> None:
    """Wait on rank 0, the only rank that polls the stop request."""
    from time import sleep

    if moment.attempt_rank_step == (1, 1, 5):
        moment.hold()
    if moment.attempt_rank_step == (2, 0, 12):
        moment.mark_reached()
        while not moment.loop.stop.requested:
            sleep(0.02)


@pytest.mark.fault("F20", "F23")
def test_a_job_that_loses_a_worker_and_reaches_its_time_limit_ends_like_an_undisturbed_one(
    cluster: SlurmCluster, training: tuple[str, ...], undisturbed: RunDir, tmp_path: Path
) -> None:
    """The launcher starts a new attempt; shortly before the time limit, the job is requeued."""
    fault = inject_fault(tmp_path / "fault", hold_then_wait_for_stop_in_attempt_2)
    folder = tmp_path / NASTY
    folder.mkdir()
    job = cluster.submit(folder, NASTY, *training, *LIMIT, "--env", f"NASTY={NASTY}\n", env=fault.env)
    job.wait_for_file(fault.hold_marker(attempt=1, rank=1))
    pid = json.loads(job.run.rank_progress(1).read_text())["pid"]
    environment = cluster.run_on("n2", "cat", f"/proc/{pid}/environ")
    cluster.signal_worker(job, 1, "KILL")
    job.wait_for_file(fault.hold_marker(attempt=2, rank=0))
    subprocess.run(["scontrol", "update", f"jobid={job.id}", f"EndTime={slurm_time(150)}"], check=True)
    job.wait_for_file(job.run.stop_request)  # the warning comes within 30 s: Slurm checks no more often
    job.wait_for_restart(1)
    assert (job.wait_for_end().state, job.run.last_attempt()) == ("COMPLETED", 3)
    assert f"NASTY={NASTY}\n\0" in environment
    assert not list(tmp_path.rglob("canary"))
    assert "the job's time is nearly up: Slurm requeues job" in job.log_text
    assert launches(job.run) == in_job(job, 0, 1)
    assert_same(job.run, undisturbed)


@pytest.mark.fault("F22", "F24")
def test_a_job_that_loses_a_node_and_is_then_preempted_resumes_each_time(
    cluster: SlurmCluster, long_training: tuple[str, ...], tmp_path: Path
) -> None:
    """The job resumes from its newest checkpoint; before it is preempted, it saves one."""
    job = cluster.submit(tmp_path, "run", *long_training, *LIMIT)
    job.wait_for_step(10)
    cluster.run_script("crash", "n2", "down")
    cluster.run_script("boot", "n2")
    assert job.resume_step_after_restart(1) >= 8
    step = job.progress()["step"]
    urgent = ("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
    assert job.resume_step_after_restart(2) >= step
    subprocess.run(["scancel", job.id], check=True)
    assert_cancelled(job)
    assert launches(job.run) == in_job(job, 0, 1, 2)


@pytest.mark.fault("F24")
def test_an_elastic_job_outlives_one_of_its_nodes(
    cluster: SlurmCluster, long_training: tuple[str, ...], tmp_path: Path
) -> None:
    job = cluster.submit(tmp_path, "run", *long_training, *LIMIT, "--elastic", "1:2")
    job.wait_for_step(8)
    cluster.set_down("n2")
    job.wait_for_step(1, attempt=2)
    attempt = json.loads(job.run.attempt(2).read_text())
    assert (attempt["workers"], [node["host"] for node in attempt["nodes"]]) == (1, ["n1"])
    assert (job.state.state, job.restarts) == ("RUNNING", 0)
    subprocess.run(["scancel", job.id], check=True)
    assert_cancelled(job)


@pytest.mark.fault("F49")
def test_a_job_whose_nodes_fail_the_checks_is_requeued(
    cluster: SlurmCluster, training: tuple[str, ...], undisturbed: RunDir, tmp_path: Path
) -> None:
    with cluster.without_python("n2"):
        job = cluster.submit(tmp_path, "run", *training, *LIMIT)
        wait_until(lambda: job.restarts >= 1, "a requeue")
    assert job.wait_for_end().state == "COMPLETED", job.log_text
    assert "a node did not answer the checks: Slurm requeues job" in job.log_text
    assert_same(job.run, undisturbed)


def assert_cancelled(job: SlurmJob) -> None:
    """Assert that the job was cancelled with a checkpoint of its last step."""
    end, outcome = job.wait_for_end(), json.loads(job.run.outcome.read_text())
    assert (end.state, end.exit_code) == ("CANCELLED", 75)
    assert (outcome["state"], outcome["step"]) == ("stopped", job.run.newest_step())
    assert "stopped after step" in job.log_text


@pytest.mark.fault("F21")
@pytest.mark.parametrize(
    ("starter", "module", "grace_s"),
    [("torchrun", TORCHRUN, 120), pytest.param("deepspeed", DEEPSPEED, 30, marks=needs_deepspeed)],
)
def test_a_cancelled_job_saves_its_last_step_and_is_not_requeued(
    starter: str, module: str, grace_s: int, cluster: SlurmCluster, long_training: tuple[str, ...], tmp_path: Path
) -> None:
    """The grace is shorter with DeepSpeed, whose launcher is signalled too and kills its workers after 30 s."""
    job = cluster.submit(tmp_path, "run", *long_training, *LIMIT, "--starter", starter)
    job.wait_for_step(5)
    subprocess.run(["scancel", job.id], check=True)
    assert_cancelled(job)
    assert job.restarts == 0
    assert module in job.run.plan.read_text()
    assert json.loads(job.run.launch.read_text())["grace_s"] == grace_s


def test_wait_prints_the_failure_report_and_returns_the_exit_code(
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


@pytest.mark.fault("F52")
def test_a_failing_site_script_ends_the_job_with_its_error(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    """The site script is that of the submission folder; it can use the caller's exported functions."""
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "env.sh").write_text("module load good\nmodule load nope\nmodule load never\n")
    env = {"BASH_FUNC_module%%": '() {  echo "loads $2";\n [ "$2" != nope ]\n}'}
    job = cluster.submit(tmp_path, "run", *training, *LIMIT, env=env)
    end = job.wait_for_end()
    assert (end.state, end.exit_code) == ("FAILED", 3), job.log_text
    assert "loads good\nloads nope\n" in job.log_text
    assert "cluster/env.sh failed, so nothing is started: exit code 1 (env.sh, line 2)\n" in job.log_text
    assert "never" not in job.log_text
    assert job.run.last_attempt() == 0


@pytest.mark.skipif(bool(container_skip_reason()), reason=container_skip_reason())
def test_a_job_trains_inside_a_container_on_each_node(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    options = ("--wrap", write_container(tmp_path), "--srun-arg", "comment=x", "--set", "train.max_steps=2")
    job = cluster.submit(tmp_path, "run", *training, *options, *LIMIT)
    assert job.wait_for_end().state == "COMPLETED", job.log_text
    attempt = json.loads(job.run.attempt(1).read_text())
    assert [node["host"] for node in attempt["nodes"]] == [INSIDE, INSIDE]


def test_seeds_of_an_array_are_separate_runs_that_share_the_hosts(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    job = cluster.submit(tmp_path, "sweep", *training, "--set", "train.max_steps=4", *LIMIT, "--array", "3,5")
    tasks = [SlurmJob(cluster, f"{job.id}_{seed}", RunDir(tmp_path / "sweep" / f"seed-{seed}")) for seed in (3, 5)]
    for task in tasks:
        task.wait_for_step(1)
    assert [task.wait_for_end().state for task in tasks] == ["COMPLETED", "COMPLETED"]
    assert [json.loads(task.run.manifest.read_text())["seed"] for task in tasks] == [3, 5]
    assert [launches(task.run)[1]["array_task"] for task in tasks] == [3, 5]
    assert newest_weights(tasks[0].run) != newest_weights(tasks[1].run)


def test_an_array_is_stopped_shown_resumed_and_cancelled_by_its_folder(
    cluster: SlurmCluster, long_training: tuple[str, ...], tmp_path: Path
) -> None:
    """One task is running, the other pending; both are resumed as one array."""

    def control(*command: str) -> str:
        answer = run_command("fmfsd-launch", *command, cwd=tmp_path)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    job = cluster.submit(tmp_path, "sweep", *long_training, *LIMIT, "--array", "3,5%1")
    running = SlurmJob(cluster, f"{job.id}_3", RunDir(tmp_path / "sweep" / "seed-3"))
    running.wait_for_step(1)
    first, second = control("stop", "sweep", "--wait").splitlines()
    assert (first, second.startswith(f"seed-5: cancelled in Slurm: job {job.id}_5: PENDING")) == (
        "seed-3: ended: stopped",
        True,
    )
    assert "seed-3 [node 0 rank 0]" in control("logs", "sweep")
    running.wait_for_end()
    resumed = re.search(r"submitted job (\d+)", control("resume", "sweep"))
    assert resumed is not None
    assert [slurm_commands.query_job_state(f"{resumed[1]}_{seed}") is not None for seed in (3, 4, 5)] == [
        True,
        False,
        True,
    ]
    assert [line.partition(":")[0] for line in control("cancel", "sweep").splitlines()] == ["seed-3", "seed-5"]


def test_a_heterogeneous_job_is_refused_by_name(cluster: SlurmCluster, tmp_path: Path) -> None:
    launch = [command("fmfsd-launch"), "smoke", "--dry-run"]
    salloc = ["salloc", "--quiet", "--nodes=1", ":", "--nodes=1", *launch]
    answer = subprocess.run(salloc, cwd=tmp_path, capture_output=True, text=True)
    assert (answer.returncode, "SLURM_HET_SIZE=2: heterogeneous jobs are not supported" in answer.stderr) == (3, True)


def test_the_script_may_be_submitted_by_hand(cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "cluster" / "train.sbatch"
    arguments = (*training, "--nodes", "1", "--set", "train.max_steps=2")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    number = sbatch("--cpus-per-task=1", "--time=10", str(script), *arguments, cwd=tmp_path, PATH=path)
    run = RunDir(tmp_path / "runs" / f"cifar100-resnet18-job{number}")
    job = SlurmJob(cluster, number, run)
    assert job.wait_for_end().state == "COMPLETED", (tmp_path / f"fmfsd-{number}.log").read_text()
    assert json.loads(run.outcome.read_text())["state"] == "finished"
    assert [entry["id"] for entry in launches(run)] == [number]


def sbatch(*arguments: str, cwd: Path, **variables: str) -> str:
    """Submit a job and return its id."""
    command, env = ["sbatch", "--parsable", *arguments], {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout.strip()


def test_a_job_that_slurm_refuses_writes_no_files(
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
    assert (copy / "fmfsd" / "training" / "trainer.py").read_bytes() == Path("fmfsd/training/trainer.py").read_bytes()
    assert job.wait_for_end().state == "CANCELLED"


@pytest.mark.fault("F61")
def test_a_job_whose_granted_gpus_are_not_visible_does_not_train_on_the_cpu(
    cluster: SlurmCluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "script").write_text(f"#!/bin/sh\nexec {shlex.join((command('fmfsd-launch'), *training, '--check'))}\n")
    options = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1", "--output=log")
    number = sbatch(*options, "script", cwd=tmp_path)
    end, log = SlurmJob(cluster, number, RunDir(tmp_path)).wait_for_end(), (tmp_path / "log").read_text()
    assert (end.state, end.exit_code) == ("FAILED", 3), log
    assert [line.split(" (")[0] for line in log.splitlines() if "granted" in line] == [
        f"{host}: Slurm granted 1 GPUs, and none is visible" for host in ("n1", "n2")
    ]


def test_an_agent_gets_all_gpus_that_the_job_has_on_its_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Tested with every way of requesting GPUs."""
    script, gpu_options = (
        tmp_path / "script",
        ("--gpus-per-node=2", "--gpus-per-node=a100:2", "--gres=gpu:2", "--gres=gpu:a100:2"),
    )
    argv = srun.agent_command("n2", cores=2, deadline_s=1)
    assert argv[-len(AGENT_COMMAND) - 2 :][: len(AGENT_COMMAND)] == AGENT_COMMAND
    step = (*argv[: -len(AGENT_COMMAND) - 2], "printenv", "CUDA_VISIBLE_DEVICES")
    script.write_text(f"#!/bin/sh\n{' '.join(step)}\n")
    options = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--output=%j")
    numbers = [sbatch(*options, option, str(script), cwd=tmp_path) for option in gpu_options]
    states = [SlurmJob(cluster, number, RunDir(tmp_path)).wait_for_end().state for number in numbers]
    assert states == ["COMPLETED"] * len(gpu_options)
    assert [(tmp_path / number).read_text() for number in numbers] == ["0,1\n"] * len(gpu_options)
