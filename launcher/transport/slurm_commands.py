"""Slurm's commands (sbatch, scontrol, sacct, scancel), and the parsing of their output.

A job of another cluster than the default one has a reference as sbatch prints it: `7;cluster`.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmfsd.errors import CheckError
from launcher.transport.slurm_job_state import JobState

ANSWER_TIMEOUT_S = 60.0


class SlurmTimeoutError(CheckError):
    """A Slurm command did not respond in time."""


def expand_nodelist(nodelist: str) -> tuple[str, ...]:
    """Return the host names of a Slurm node list such as n[1-3,7]. CheckError if Slurm does not respond."""
    return tuple(_run_checked("scontrol", "show", "hostnames", nodelist).split())


def submit(options: Sequence[str], *, environment: Mapping[str, str], cwd: str) -> str:
    """Submit a job with exactly this environment. Return its reference: `7` or `7;cluster`.

    CheckError with Slurm's error output if it refuses.
    """
    return _run_checked("sbatch", "--parsable", *options, environment=environment, cwd=cwd).strip()


def split_job_reference(job: str) -> tuple[str, str]:
    """Split a job's reference into its id and its cluster; empty: the default cluster."""
    number, _, cluster = job.partition(";")
    return number, cluster


def array_task_reference(job: str, task: int) -> str:
    """Return the reference of a task of an array job."""
    number, semicolon, cluster = job.partition(";")
    return f"{number}_{task}{semicolon}{cluster}"


def scancel_command(job: str) -> tuple[str, ...]:
    number, options = _id_and_cluster_options(job)
    return ("scancel", *options, number)


def _id_and_cluster_options(job: str) -> tuple[str, tuple[str, ...]]:
    """Return a job's id and the options that direct a command to its cluster."""
    number, cluster = split_job_reference(job)
    return number, (f"--clusters={cluster}",) if cluster else ()


def dry_run_submit(options: Sequence[str], *, environment: Mapping[str, str], cwd: str) -> str:
    """Return Slurm's current estimate for a job without submitting it. CheckError if Slurm would refuse the job."""
    completed = _run("sbatch", "--test-only", *options, environment=environment, cwd=cwd)
    output = _without_prefix(completed.stderr + completed.stdout)
    if completed.returncode:
        raise CheckError(f"Slurm refuses the job: {output}")
    return output


def query_job_state(job: str) -> JobState | None:
    """Return the state of a job; None if Slurm no longer knows it. CheckError if Slurm does not respond."""
    number, options = _id_and_cluster_options(job)
    completed = _run("scontrol", *options, "show", "job", number)
    if not completed.returncode:
        return _parse_scontrol(job, completed.stdout)
    # "not found": for a task of an array
    if "Invalid job id" not in completed.stderr and "not found" not in completed.stdout:
        raise CheckError(f"scontrol show job {number}: {completed.stderr.strip()}")
    return _query_sacct(job)


def cancel(job: str) -> None:
    """Cancel a job; Slurm first signals it to stop. CheckError if Slurm refuses."""
    _run_checked(*scancel_command(job))


def requeue(job_id: str) -> None:
    """Requeue a job. If called inside the job, Slurm ends it at once. CheckError if Slurm refuses."""
    _run_checked("scontrol", "requeue", job_id)


def query_gpus_per_node(job: str) -> int:
    """Return the smallest number of GPUs that a job has on any of its nodes; 0 if Slurm does not respond."""
    number, options = _id_and_cluster_options(job)
    try:
        text = _run_checked("scontrol", *options, "show", "job", "--details", number)
    except CheckError:
        return 0
    nodes = re.findall(r"^ +Nodes=(\S+) .*?GRES=(\S*)", text, re.MULTILINE)
    return min((_count_gpus(gres) for _, gres in nodes), default=0)


def _count_gpus(gres: str) -> int:
    """Return the number of GPUs in a GRES string: 2 for `gpu:a100:2(IDX:0-1),shard:4`."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:([0-9]+)", gres))


def _parse_scontrol(job: str, text: str) -> JobState:
    """Parse `scontrol show job`. Fields that users choose come after the fields read here, or contain no line break."""

    def field(name: str) -> str:
        match = re.search(rf"^ +(?:.* )?{name}=(\S*)", text, re.MULTILINE)
        return match[1] if match and match[1] not in ("None", "(null)", "Unknown", "N/A") else ""

    number, cluster = split_job_reference(job)
    return JobState(
        number,
        field("JobState"),
        field("Reason"),
        field("StartTime"),
        field("NodeList"),
        _exit_code(field("ExitCode")),
        cluster,
    )


def _exit_code(text: str) -> int:
    """Return the exit code of `1:0` (code) or `0:9` (signal); a signal gives 128 + its number, as in a shell."""
    code, _, number = text.partition(":")
    return int(code or 0) or (128 + int(number) if number.isdecimal() and int(number) else 0)


def _query_sacct(job: str) -> JobState | None:
    """Return the state from the accounting database, which not every cluster has."""
    number, options = _id_and_cluster_options(job)
    fields = ("State", "Start", "NodeList", "ExitCode")
    completed = _run("sacct", "-X", "-n", "-P", *options, "-j", number, f"--format={','.join(fields)}")
    lines = [line for line in completed.stdout.splitlines() if "|" in line] if not completed.returncode else []
    if not lines or lines[0].count("|") != len(fields) - 1:
        return None
    state, start, nodes, code = lines[0].split("|")
    cluster = split_job_reference(job)[1]
    return JobState(number, state.split()[0], start=start, nodes=nodes, exit_code=_exit_code(code), cluster=cluster)


def _run_checked(*command: str, environment: Mapping[str, str] | None = None, cwd: str | None = None) -> str:
    completed = _run(*command, environment=environment, cwd=cwd)
    if completed.returncode:
        raise CheckError(f"{command[0]}: {_without_prefix(completed.stderr) or f'exit code {completed.returncode}'}")
    return completed.stdout


def _run(
    *command: str, environment: Mapping[str, str] | None = None, cwd: str | Path | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise CheckError(f"{command[0]}: not found: is this machine a part of a Slurm cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmTimeoutError(
            f"{command[0]}: no answer in {ANSWER_TIMEOUT_S:g} s: is Slurm's controller up?"
        ) from error


def _without_prefix(output: str) -> str:
    """Join the lines of Slurm's output, without the command's name and `error:` at their start."""
    lines = (re.sub(r"^(?:\w+: )?(?:(?:error|fatal): )?", "", line) for line in output.strip().splitlines())
    return "; ".join(filter(None, lines))
