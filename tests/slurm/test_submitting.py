"""Submission of jobs: quick tests with fake Slurm commands."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from launcher.config.environment import forwarded_variables
from launcher.resources.allocation import Allocation
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import command, run_command

FAKE = Path(__file__).with_name("fake.py")
SCRIPTS = Path(__file__).parents[2] / "cluster"
NASTY = 'it\'s $(touch canary) `touch canary` "x"; [a] *'


@dataclass(frozen=True)
class FakeSlurm:
    """The fake Slurm commands in `folder`, and their recorded arguments."""

    folder: Path

    def set_up(self, version: str, refuses: str = "") -> None:
        (self.folder / "slurm.conf").write_text(json.dumps({"version": version, "refuses": refuses}))

    def recorded(self, command: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{command}.json").read_text()))

    @property
    def was_submitted(self) -> bool:
        return (self.folder / "sbatch.json").exists()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "scancel", "sacct"):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} {name} "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    fake_slurm = FakeSlurm(folder)
    fake_slurm.set_up("22.05")
    return fake_slurm


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def tiny(root: Path) -> tuple[str, ...]:
    return (*tiny_arguments(root, "train.max_steps=1", workers=(1, 8)), "--on", "slurm")


@pytest.mark.parametrize("version", ["22.05", "23.11"])
def test_a_job_finishes_under_every_slurm_version(version: str, fake: FakeSlurm, tiny_root: Path, work: Path) -> None:
    fake.set_up(version)
    inside = ("--wrap", shlex.join(("env", f"INSIDE={NASTY}")), "--srun-arg", f"container-image={NASTY}")
    arguments = (*tiny(tiny_root), "--device", "cpu", "--run-dir", NASTY, *inside, "--wait")
    answer = run_command("fmfsd-launch", *arguments, cwd=work)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    step = fake.recorded("srun")["arguments"]
    assert {"--cpus-per-task=2", f"--container-image={NASTY}"} <= set(step)
    assert step[step.index("env") + 1] == f"INSIDE={NASTY}"
    assert "job 7: COMPLETED" in answer.stdout
    assert not list(work.rglob("canary"))


def test_gpus_are_requested_per_node_and_special_characters_are_passed_unchanged(
    fake: FakeSlurm, tiny_root: Path, work: Path
) -> None:
    fake.set_up("22.05", refuses="submit")  # recorded, and not run
    options = ("--partition", NASTY, "--account", "a b", "--time", "1-2", "--mem", "64G", "--cpus-per-gpu", "8")
    more = ("--sbatch-arg", f"comment={NASTY}", "--sbatch-arg", "exclusive", "--env", f"SECRET_KEY={NASTY}\nhidden")
    run_command(
        "fmfsd-launch", *tiny(tiny_root), "--nodes", "2", "--gpus", "4", "--run-dir", NASTY, *options, *more, cwd=work
    )
    request = fake.recorded("sbatch")
    before, _, after = " ".join(request["arguments"]).partition("train.sbatch")
    assert request["arguments"][:6] == [
        "--parsable",
        f"--job-name={NASTY}",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=32",
        "--gpus-per-node=4",
    ]
    expected = (f"--partition={NASTY}", "--account=a b", "--time=1-2", "--mem=64G", f"--comment={NASTY}", "--exclusive")
    assert set(expected) <= set(request["arguments"])
    assert {f"--output={work}/{NASTY}/logs/slurm-%j.log", "--signal=B:USR1@180"} <= set(request["arguments"])
    assert "hidden" not in before + after
    assert "--env SECRET_KEY" in after
    assert request["environment"]["SECRET_KEY"] == f"{NASTY}\nhidden"
    assert not list(work.rglob("canary"))


def test_a_gres_with_a_gpu_type_replaces_the_number_of_gpus(fake: FakeSlurm, tiny_root: Path, work: Path) -> None:
    arguments = (*tiny(tiny_root), "--gpus", "4", "--sbatch-arg", "gres=gpu:a100:4", "--run-dir", "r", "--dry-run")
    answer = run_command("fmfsd-launch", *arguments, "--json", cwd=work)
    sbatch = json.loads(answer.stdout)["sbatch"]
    assert "--gres=gpu:a100:4" in sbatch
    assert not [option for option in sbatch if option.startswith("--gpus-")]
    assert not fake.was_submitted


def test_a_job_gets_only_the_listed_variables_of_the_caller(
    fake: FakeSlurm, tiny_root: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hidden")
    monkeypatch.setenv("SBATCH_RESERVATION", "course")
    monkeypatch.setenv("SLURM_NTASKS", "9")
    fake.set_up("22.05", refuses="submit")
    run_command("fmfsd-launch", *tiny(tiny_root), "--device", "cpu", "--run-dir", "run", cwd=work)
    environment = fake.recorded("sbatch")["environment"]
    ours = {"FMFSD_CLUSTER_DIR", "FMFSD_UMASK", "PATH", "PYTHONPATH"}
    own = {*ours, "SLURM_CONF", "SBATCH_RESERVATION", "PWD", "SHLVL", "_", "OLDPWD"}
    assert set(environment) - own <= set(forwarded_variables(os.environ))
    assert environment["PYTHONPATH"].startswith(f"{work}/run/source/")
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))


def test_the_site_script_comes_from_the_folder_or_from_the_variable(
    fake: FakeSlurm, tiny_root: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.set_up("22.05", refuses="run")
    for folder in ("work/cluster", "site"):
        (work.parent / folder).mkdir()
        (work.parent / folder / "env.sh").write_text(f"# of {folder}\n")
    arguments = (*tiny(tiny_root), "--device", "cpu", "--run-dir")
    output = run_command("fmfsd-launch", *arguments, "one", cwd=work).stdout
    assert f"site script: {work}/cluster/env.sh" in output
    monkeypatch.setenv("FMFSD_CLUSTER_DIR", str(work.parent / "site"))
    run_command("fmfsd-launch", *arguments, "other", cwd=work)
    scripts = [next((work / name / "source").glob("*/cluster/env.sh")).read_text() for name in ("one", "other")]
    assert scripts == ["# of work/cluster\n", "# of site\n"]
    monkeypatch.setenv("FMFSD_CLUSTER_DIR", "nowhere")
    refused = run_command("fmfsd-launch", *arguments, "third", cwd=work)
    assert (refused.returncode, "FMFSD_CLUSTER_DIR=nowhere: has no env.sh" in refused.stderr) == (2, True)


@pytest.mark.parametrize("script", ["train", "tune"])
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_site_script_can_use_functions_of_login_shells(script: str, work: Path) -> None:
    """`module` is undefined in the caller and changes PATH; the submitted environment stays first in PATH."""
    for folder in ("profile.d", "bin", "cluster"):
        (work / folder).mkdir()
    defines = 'PATH=/usr/bin:/bin; module() { [ "$2" != nope ] && PATH=$PATH:/modules/$2; }\n'
    (work / "profile").write_text(defines)
    for name in ("fmfsd-launch", "fmfsd-tune"):
        (work / "bin" / name).write_text('#!/bin/sh\necho "$PATH"\n')
        (work / "bin" / name).chmod(0o755)

    def run(text: str) -> subprocess.CompletedProcess[str]:
        (work / "cluster" / "env.sh").write_text(text)
        bind = f'mount --bind {work}/profile /etc/profile && exec bash "{SCRIPTS}/{script}.sbatch"'
        env = {"PATH": f"{work}/bin:/usr/bin:/bin"}
        command = ["unshare", "--mount", "sh", "-c", bind]
        return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)

    answer = run("module load cuda\n[ -d /nowhere ] && module load nope\ntrue\n")
    assert answer.stdout == f"{work}/bin:/usr/bin:/bin:/usr/bin:/bin:/modules/cuda\n", answer.stderr
    failed = run("module load cuda\nexport FMFSD_DATA=/x\nreturn 4\n")
    assert (failed.returncode, failed.stdout) == (3, "")
    assert failed.stderr.startswith("cluster/env.sh failed, so nothing is started: exit code 4 ("), failed.stderr


@pytest.mark.fault("F51")
def test_an_array_of_many_seeds_needs_few_open_files(fake: FakeSlurm, tiny_root: Path, work: Path) -> None:
    fake.set_up("22.05", refuses="run")
    argv = (command("fmfsd-launch"), *tiny(tiny_root), "--device", "cpu", "--run-dir", "sweep", "--array", "0-29")
    limited = ["sh", "-c", 'ulimit -n 24 && exec "$@"', "sh", *argv]
    answer = subprocess.run(limited, cwd=work, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert len(list(work.glob("sweep/seed-*/jobs.json"))) == 30


def test_a_failed_submission_may_be_repeated_with_another_config(fake: FakeSlurm, tiny_root: Path, work: Path) -> None:
    fake.set_up("22.05", refuses="submit")
    refused = run_command("fmfsd-launch", *tiny(tiny_root), "--device", "cpu", "--run-dir", "run", cwd=work)
    assert (refused.returncode, "Unable to contact slurm controller" in refused.stderr) == (3, True)
    again = (*tiny(tiny_root), "--set", "optim.lr=0.01", "--device", "cpu", "--run-dir", "run", "--resume", "never")
    assert "Unable to contact" in run_command("fmfsd-launch", *again, cwd=work).stderr
    assert RunDir(work / "run").is_unused()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--time", "3"), 2, "3 must exceed 180 s, the time before the job's end"),
        (("--time", "soon"), 2, "expected Slurm's form"),
        (("--partition", "-x"), 2, "is not a value: expected printable characters, not starting with a dash"),
        (("--account", "a\nb"), 2, "is not a value"),
        (("--sbatch-arg", "wrap=touch canary"), 2, "'wrap': is set by the launcher itself"),
        (("--sbatch-arg", "wr=touch canary"), 2, "'wr': is set by the launcher itself"),
        (("--sbatch-arg", "outp=/x"), 2, "is set by the launcher itself"),
        (("--sbatch-arg", "requeue=soon"), 2, "'requeue': is set by the launcher itself"),
        (("--sbatch-arg", "gpus=4"), 2, "'gpus': requests GPUs for the whole job"),
        (("--sbatch-arg", "container=/image"), 2, "use --wrap"),
        (("--sbatch-arg", "-p=x"), 2, "expected the long name of an option"),
        (("--array", "5-1"), 2, "expected up to 10000 seeds"),
        (("--run-dir", "100%"), 2, "Slurm writes no log into a folder with %"),
        (("--partition", "nope"), 3, "Slurm refuses the job: invalid partition specified: nope"),
    ],
)
def test_problems_are_reported_before_anything_is_submitted_or_written(
    arguments: tuple[str, ...], code: int, expected: str, fake: FakeSlurm, tiny_root: Path, work: Path
) -> None:
    answer = run_command("fmfsd-launch", *tiny(tiny_root), "--device", "cpu", *arguments, cwd=work)
    assert (answer.returncode, answer.stdout if code == 2 else "") == (code, ""), answer.stderr
    assert expected in answer.stderr
    assert list(work.iterdir()) == []
    assert not fake.was_submitted


def test_options_of_a_job_without_on_slurm_are_an_error(fake: FakeSlurm, work: Path) -> None:
    answer = run_command("fmfsd-launch", "smoke", "--time", "10", cwd=work)
    assert (answer.returncode, "--on: options of a batch job without --on slurm" in answer.stderr) == (2, True)


def test_a_dry_run_shows_the_job_its_script_and_the_commands_inside(
    fake: FakeSlurm, tiny_root: Path, work: Path
) -> None:
    options = ("--nodes", "2", "--starter", "torchrun", "--run-dir", "run", "--dry-run")
    answer = run_command("fmfsd-launch", *tiny(tiny_root), *options, cwd=work)
    inside = ("# node 1, agent: env -u ", "srun --overlap", "--master-addr")
    for part in ("sbatch --job-name=run --nodes=2", "trap '' USR1", *inside):
        assert part in answer.stdout
    assert (list(work.iterdir()), fake.was_submitted) == ([], False)


def test_a_check_reports_when_slurm_would_start_the_job(fake: FakeSlurm, tiny_root: Path, work: Path) -> None:
    answer = run_command("fmfsd-launch", *tiny(tiny_root), "--device", "cpu", "--check", cwd=work)
    assert "1 worker on cpu, 1 node agent; Job 1 to start at 2026" in answer.stdout
    assert not fake.was_submitted


def test_a_run_with_a_pending_job_is_not_submitted_again(fake: FakeSlurm, tiny_root: Path, work: Path) -> None:
    fake.set_up("22.05", refuses="run")
    arguments = (*tiny(tiny_root), "--device", "cpu", "--run-dir", "run")
    assert run_command("fmfsd-launch", *arguments, cwd=work).returncode == 0
    again = run_command("fmfsd-launch", *arguments, cwd=work)
    assert (again.returncode, "job 7: PENDING (Priority)" in again.stderr) == (3, True)
    assert [job["id"] for job in json.loads((work / "run" / "jobs.json").read_text())["jobs"]] == ["7"]


def test_a_job_of_another_cluster_is_queried_and_cancelled_there(fake: FakeSlurm, tiny_root: Path, work: Path) -> None:
    fake.set_up("22.05", refuses="run")
    arguments = (*tiny(tiny_root), "--device", "cpu", "--run-dir", "run", "--sbatch-arg", "clusters=big")
    assert "submitted job 7 to cluster big" in run_command("fmfsd-launch", *arguments, cwd=work).stdout
    again = run_command("fmfsd-launch", *arguments, cwd=work)
    assert (again.returncode, "job 7 of cluster big: PENDING (Priority)" in again.stderr) == (3, True)
    assert "queued: job 7 of cluster big" in run_command("fmfsd-launch", "status", "run", cwd=work).stdout
    assert "cancelled in Slurm: job 7 of cluster big" in run_command("fmfsd-launch", "cancel", "run", cwd=work).stdout
    array = (*arguments, "--array", "1", "--run-dir", "sweep", "--json")
    submission = json.loads(run_command("fmfsd-launch", *array, cwd=work).stdout)
    assert (submission["job"], submission["cluster"]) == ("7", "big")
    assert [job["id"] for job in json.loads((work / "sweep/seed-1/jobs.json").read_text())["jobs"]] == ["7_1"]


def test_gpus_of_the_whole_job_are_refused_with_several_nodes(fake: FakeSlurm) -> None:
    allocation = Allocation.from_environment({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_GPUS": "4"})
    assert allocation is not None
    with pytest.raises(CheckError, match="request them with --gpus-per-node"):
        allocation.list_hosts()
