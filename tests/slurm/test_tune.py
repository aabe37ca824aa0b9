"""A sweep in an allocation of a real Slurm cluster: trials over two nodes, and a requeued job."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fmfsd.system.atomic_files import read_json
from launcher.run_dir.sweep_dir import SweepDir
from launcher.transport import slurm_commands
from tests.helpers.processes import command, wait_until
from tests.helpers.searches import facts_of_kind, sweep_arguments, trial_results
from tests.helpers.slurm import SlurmCluster
from tests.helpers.stub_training import stub_training

SCRIPT = Path(__file__).parents[2] / "cluster" / "tune.sbatch"
DEADLINE_S = 240.0


def test_a_sweep_in_salloc_uses_the_gpus_of_the_allocation(
    cluster: SlurmCluster, tiny_root: Path, tmp_path: Path
) -> None:
    """With --gres, no environment variable contains the GPUs."""
    options = sweep_arguments(tiny_root, tmp_path, "--trials", "4", "--gpus", "1", "--dry-run")
    salloc = [
        "salloc",
        "--quiet",
        "--nodes=2",
        "--gres=gpu:a100:2",
        "--cpus-per-task=2",
        command("fmfsd-tune"),
        *options,
    ]
    answer = subprocess.run(salloc, cwd=tmp_path, capture_output=True, text=True)
    assert "4 at a time, 1 GPU for each node of a trial" in answer.stdout, answer.stderr


def test_a_sweep_job_runs_trials_over_its_nodes_and_resumes_after_a_requeue(
    cluster: SlurmCluster, tiny_root: Path, tmp_path: Path
) -> None:
    sweep_options = sweep_arguments(
        tiny_root, tmp_path, "--trials", "1", "--nodes", "2", "--gpus", "1", "--device", "cpu"
    )
    options = ("--parsable", "--nodes=2", "--cpus-per-task=1", "--time=30", "--output=log")
    path, stub = f"{Path(sys.executable).parent}:{os.environ['PATH']}", stub_training(tmp_path / "stub")
    hold_file = stub.hold("0001", attempt=1, step=5)
    answer = subprocess.run(
        ["sbatch", *options, str(SCRIPT), *sweep_options],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, **stub.env},
        capture_output=True,
        text=True,
        check=True,
    )
    job, sweep = answer.stdout.strip(), SweepDir(tmp_path / "sweep")
    log = tmp_path / "log"

    def is_over() -> bool:
        state = slurm_commands.query_job_state(job)
        assert state is not None, "Slurm has forgotten the job"
        return state.is_over

    def is_held() -> bool:
        assert not is_over(), log.read_text()
        return hold_file.exists()

    wait_until(is_held, "steps of a trial", deadline_s=DEADLINE_S)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_until(is_over, "the job to end", deadline_s=DEADLINE_S)
    assert [state for state, _ in trial_results(sweep).values()] == ["finished"], log.read_text()
    assert [fact["launch"]["grace_s"] for fact in facts_of_kind(sweep, "begun")] == [90.0, 90.0], log.read_text()
    hosts = {node["host"] for node in read_json(sweep.trial("0001").attempt(1))["nodes"]}
    assert hosts == {"n1", "n2"}
    assert [read_json(sweep.trial("0001").rank_progress(rank))["attempt"] for rank in (0, 1)] == [2, 2]
    assert json.loads(sweep.trial("0001").outcome.read_text())["state"] == "finished"
    logs = [sweep.coordinator_dir.starter_log(node).read_text() for node in (0, 1)]
    assert not [log for log in logs if "Draining" in log], "Ray waited for trials that had ended"
