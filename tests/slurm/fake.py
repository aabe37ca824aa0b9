"""Fake Slurm command, named by the first argument: a cluster with one host that refuses what each version refuses.

$SLURM_CONF is a JSON file, {"version": "23.11", "refuses": ""}; arguments are recorded in its folder. Jobs run on this
machine. Sources of the refusals: release notes of 22.05 (a step does not take the job's cores);
github.com/meta-pytorch/torchx pull 1100 and github.com/FairRootGroup/DDS issue 490 (errors of 23.11). Real clusters may
refuse more.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

CONFIGURATION = Path(os.environ["SLURM_CONF"])
FOLDER = CONFIGURATION.parent
SETTINGS = json.loads(CONFIGURATION.read_text())
VERSION = tuple(map(int, SETTINGS["version"].split(".")))
HOST = socket.gethostname()
FLAGS = {"--parsable", "--test-only", "--requeue", "--overlap", "--quiet", "--exclusive"}


def die(name: str, message: str) -> None:
    raise SystemExit(f"{name}: error: {message}")


def parse_options(args: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options, and the arguments after them."""
    options: dict[str, str] = {}
    while args and args[0].startswith("-"):
        name, equals, value = args.pop(0).partition("=")
        if not equals and name not in FLAGS:
            die("fake", f"unrecognized option '{name}'")
        options[name] = value
    return options, args


def cpus_of(text: str) -> str:
    return text.replace("=", ":").partition("cpu:")[2].partition(",")[0]


def sbatch(args: list[str]) -> None:
    if args == ["--version"]:
        print(f"slurm {SETTINGS['version']}.0")
        return
    options, job = parse_options(list(args))
    alone = {"--gpus", "--ntasks"}.isdisjoint(options)
    if VERSION >= (23, 11) and alone and ({"--gpus-per-task", "--tres-per-task"} & set(options)):
        die(
            "sbatch", "Failed to validate job spec. --gpus-per-task or --tres-per-task used without either --gpus or -n"
        )
    if options.get("--partition") == "nope":
        die("sbatch", "invalid partition specified: nope")
    if "--test-only" in options:
        print(f"sbatch: Job 1 to start at 2026-01-01T00:00:00 using 2 processors on nodes {HOST}", file=sys.stderr)
        return
    (FOLDER / "sbatch.json").write_text(json.dumps({"arguments": args, "environment": dict(os.environ)}))
    if SETTINGS.get("refuses") == "submit":
        die("sbatch", "Batch job submission failed: Unable to contact slurm controller (connect failure)")
    cluster = options.get("--clusters", "")
    (FOLDER / "cluster").write_text(cluster)
    name = f"7;{cluster}" if cluster else "7"
    if SETTINGS.get("refuses") == "run":
        write_state("PENDING", "0:0", "Priority")
        print(name)
        return
    log = options["--output"].replace("%j", "7")
    write_state("PENDING", "0:0", "Priority")  # scontrol knows the job as soon as sbatch prints its id
    with open(log, "ab") as output:
        command = [sys.executable, __file__, "job", options["--cpus-per-task"], *job]
        subprocess.Popen(command, stdout=output, stderr=output, cwd=options["--chdir"], start_new_session=True)
    print(name)


def run_job(args: list[str]) -> None:
    """Run the script in the environment of a batch shell. A job may get more cores than it requested."""
    cores, *job = args
    more = {"SLURM_TRES_PER_TASK": f"cpu={int(cores) + 1}"} if VERSION >= (23, 11) else {}
    node = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": HOST, "SLURM_JOB_CPUS_PER_NODE": str(int(cores) + 1)}
    environment = {**os.environ, **node, "SLURM_CPUS_PER_TASK": cores, "SLURM_NTASKS_PER_NODE": "1", **more}
    write_state("RUNNING", "0:0")
    code = subprocess.run(["bash", *job], env=environment).returncode
    write_state("COMPLETED" if code == 0 else "FAILED", f"{code}:0")


def write_state(state: str, code: str, reason: str = "None") -> None:
    text = (
        f"JobId=7 JobName=x\n   UserId=me MCS_label=N/A\n   JobState={state} Reason={reason} Dependency=(null)\n"
        f"   Requeue=1 Restarts=0 ExitCode={code}\n   NodeList={HOST}\n"
    )
    (FOLDER / "job.new").write_text(text)
    (FOLDER / "job.new").replace(FOLDER / "job.txt")


def srun(args: list[str]) -> None:
    options, command = parse_options(list(args))
    (FOLDER / "srun.json").write_text(json.dumps({"arguments": args}))
    by_variable, by_tres = os.environ.get("SLURM_CPUS_PER_TASK"), os.environ.get("SLURM_TRES_PER_TASK")
    if VERSION >= (23, 11) and by_variable and by_tres and by_variable != cpus_of(by_tres):
        die(
            "srun",
            "cpus_per_task set by two different environment variables "
            f"SLURM_CPUS_PER_TASK={by_variable} != SLURM_TRES_PER_TASK={by_tres}",
        )
    if "--cpus-per-task" not in options:
        die("srun", "this step gets one core of the job's")
    os.execvpe(command[0], command, {**os.environ, "SLURM_STEP_ID": "0"})


def addresses_this_cluster(options: dict[str, str]) -> bool:
    """Return True if the command addresses the cluster of the job; inside the job, commands address its own cluster."""
    matches = os.environ.get("SLURM_JOB_ID") or options.get("--clusters", "") == (FOLDER / "cluster").read_text()
    return bool(matches)


def scancel(args: list[str]) -> None:
    options, jobs = parse_options(args)
    if not addresses_this_cluster(options):
        die("scancel", f"Kill job error on job id {jobs[0]}: Invalid job id specified")
    write_state("CANCELLED", "0:0")


def scontrol(args: list[str]) -> None:
    options, args = parse_options(args)
    if args[:2] == ["show", "hostnames"]:
        print("\n".join(args[2].split(",")))
    elif args[:2] == ["show", "job"] and (FOLDER / "job.txt").exists() and addresses_this_cluster(options):
        print((FOLDER / "job.txt").read_text(), end="")
    elif args[0] == "requeue":
        (FOLDER / "requeue.json").write_text(json.dumps(args[1:]))
        die("scontrol", "Requested operation is presently disabled for job 7")
    else:
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        raise SystemExit(1)


def sacct(_args: list[str]) -> None:
    die("sacct", "Slurm accounting storage is disabled")


if __name__ == "__main__":
    commands = {
        "sbatch": sbatch,
        "srun": srun,
        "scontrol": scontrol,
        "scancel": scancel,
        "sacct": sacct,
        "job": run_job,
    }
    commands[sys.argv[1]](sys.argv[2:])
