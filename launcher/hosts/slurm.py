"""Slurm's own commands, and what they say."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.errors import CheckError

ANSWER_S = 60.0
OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
"""States that a job does not leave by itself."""


class NoAnswerError(CheckError):
    """Slurm has not said yes or no in time."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job, in its own words. `start` is when it began or is expected to; empty: not known."""

    id: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""
    exit_code: int | None = None

    @property
    def is_waiting(self) -> bool:
        return self.state == "PENDING"

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        where = f" on {self.nodes}" if self.nodes else ""
        expected = f", expected to start at {self.start}" if self.state == "PENDING" and self.start else ""
        return f"job {self.id}: {self.state}{why}{where}{expected}"


def hostnames(nodelist: str) -> tuple[str, ...]:
    """The names that `nodelist`, as n[1-3,7], stands for. CheckError if Slurm does not say."""
    return tuple(_said("scontrol", "show", "hostnames", nodelist).split())


def submit(options: Sequence[str], *, environment: Mapping[str, str], cwd: str) -> str:
    """Hand a job over to Slurm, with exactly that environment; its id. CheckError with Slurm's words if it refuses."""
    return _said("sbatch", "--parsable", *options, environment=environment, cwd=cwd).strip().partition(";")[0]


def try_out(options: Sequence[str], *, environment: Mapping[str, str], cwd: str) -> str:
    """What `submit` would come to, as Slurm estimates it now; nothing is submitted. CheckError if it would refuse."""
    done = _run("sbatch", "--test-only", *options, environment=environment, cwd=cwd)
    words = _without_prefix(done.stderr + done.stdout)
    if done.returncode:
        raise CheckError(f"Slurm refuses the job: {words}")
    return words


def job_state(job_id: str) -> JobState | None:
    """None for a job that Slurm does not remember. CheckError if Slurm does not answer."""
    done = _run("scontrol", "show", "job", job_id)
    if not done.returncode:
        return _shown(job_id, done.stdout)
    if "Invalid job id" not in done.stderr and "not found" not in done.stdout:  # the latter of a task of an array
        raise CheckError(f"scontrol show job {job_id}: {done.stderr.strip()}")
    return _accounted(job_id)


def cancel(job_id: str) -> None:
    """End a job, which first is told to stop. CheckError if Slurm does not do it."""
    _said("scancel", job_id)


def requeue(job_id: str) -> None:
    """Have Slurm start a job again later. Called from inside the job it is the last thing that is heard of it.

    CheckError if Slurm does not do it.
    """
    _said("scontrol", "requeue", job_id)


def _shown(job_id: str, text: str) -> JobState:
    """Of `scontrol show job`. What users choose comes after what is read here, or can hold no new line."""

    def field(name: str) -> str:
        found = re.search(rf"^ +(?:.* )?{name}=(\S*)", text, re.MULTILINE)
        return found[1] if found and found[1] not in ("None", "(null)", "Unknown", "N/A") else ""

    exit_code = _exit_code(field("ExitCode"))
    return JobState(job_id, field("JobState"), field("Reason"), field("StartTime"), field("NodeList"), exit_code)


def _exit_code(text: str) -> int:
    """Of `1:0`, an exit code, or `0:9`, a signal, which counts as a shell has it."""
    code, _, number = text.partition(":")
    return int(code or 0) or (128 + int(number) if number.isdecimal() and int(number) else 0)


def _accounted(job_id: str) -> JobState | None:
    """From the accounting database, which not every cluster has."""
    fields = ("State", "Start", "NodeList", "ExitCode")
    done = _run("sacct", "-X", "-n", "-P", "-j", job_id, f"--format={','.join(fields)}")
    lines = done.stdout.splitlines() if not done.returncode else []
    if not lines or lines[0].count("|") != len(fields) - 1:
        return None
    state, start, nodes, code = lines[0].split("|")
    return JobState(job_id, state.split()[0], start=start, nodes=nodes, exit_code=_exit_code(code))


def _said(*command: str, environment: Mapping[str, str] | None = None, cwd: str | None = None) -> str:
    done = _run(*command, environment=environment, cwd=cwd)
    if done.returncode:
        raise CheckError(f"{command[0]}: {_without_prefix(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


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
            timeout=ANSWER_S,
        )
    except FileNotFoundError as error:
        raise CheckError(f"{command[0]}: not found: is this machine a part of a Slurm cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"{command[0]}: no answer in {ANSWER_S:g} s: is Slurm's controller up?") from error


def _without_prefix(words: str) -> str:
    """One line, without the command's name and `error:` before each of Slurm's."""
    lines = (re.sub(r"^(?:\w+: )?(?:(?:error|fatal): )?", "", line) for line in words.strip().splitlines())
    return "; ".join(filter(None, lines))
