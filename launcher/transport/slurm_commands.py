"""Slurm's own commands, and what they say.

A job of another cluster than the default one is named as sbatch prints it: `7;cluster`.
"""

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
WAITING = (
    *("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    "EXPEDITING",
)
"""States from which a job may start, or start again; the last since Slurm 25.11."""
UNFINISHED = ("COMPLETING", "STAGE_OUT")
"""States in which something of a job that has ended is still there."""


class NoAnswerError(CheckError):
    """Slurm has not said yes or no in time."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job, in its own words. `start` is when it began or is expected to; empty: not known.

    `cluster`: the one that was named at its submission; empty: the default one.
    """

    id: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""
    exit_code: int | None = None
    cluster: str = ""

    @property
    def reference(self) -> str:
        """Return its name for this module's functions."""
        return f"{self.id};{self.cluster}" if self.cluster else self.id

    @property
    def states(self) -> frozenset[str]:
        """Return its state and flags: newer versions of Slurm may show several, as in COMPLETED,COMPLETING."""
        return frozenset(re.split("[,+]", self.state))

    @property
    def is_waiting(self) -> bool:
        return not self.states.isdisjoint(WAITING)

    @property
    def is_over(self) -> bool:
        return not self.states.isdisjoint(OVER) and self.states.isdisjoint((*WAITING, *UNFINISHED))

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        where = f" on {self.nodes}" if self.nodes else ""
        cluster = f" of cluster {self.cluster}" if self.cluster else ""
        expected = f", expected to start at {self.start}" if self.is_waiting and self.start else ""
        return f"job {self.id}{cluster}: {self.state}{why}{where}{expected}"


def hostnames(nodelist: str) -> tuple[str, ...]:
    """The names that `nodelist`, as n[1-3,7], stands for. CheckError if Slurm does not say."""
    return tuple(_said("scontrol", "show", "hostnames", nodelist).split())


def submit(options: Sequence[str], *, environment: Mapping[str, str], cwd: str) -> str:
    """Hand a job over to Slurm, with exactly that environment; its name, as `7` or `7;cluster`.

    CheckError with Slurm's words if it refuses.
    """
    return _said("sbatch", "--parsable", *options, environment=environment, cwd=cwd).strip()


def id_and_cluster(job: str) -> tuple[str, str]:
    """Split a job's name; no cluster: the default one."""
    number, _, cluster = job.partition(";")
    return number, cluster


def task_of(job: str, task: int) -> str:
    """Return the name of an array's task."""
    number, semicolon, cluster = job.partition(";")
    return f"{number}_{task}{semicolon}{cluster}"


def scancel_command(job: str) -> tuple[str, ...]:
    number, options = _number_and_options(job)
    return ("scancel", *options, number)


def _number_and_options(job: str) -> tuple[str, tuple[str, ...]]:
    """Return a job's number, and the options by which a command reaches its cluster."""
    number, cluster = id_and_cluster(job)
    return number, (f"--clusters={cluster}",) if cluster else ()


def try_out(options: Sequence[str], *, environment: Mapping[str, str], cwd: str) -> str:
    """What `submit` would come to, as Slurm estimates it now; nothing is submitted. CheckError if it would refuse."""
    done = _run("sbatch", "--test-only", *options, environment=environment, cwd=cwd)
    words = _without_prefix(done.stderr + done.stdout)
    if done.returncode:
        raise CheckError(f"Slurm refuses the job: {words}")
    return words


def job_state(job: str) -> JobState | None:
    """None for a job that Slurm does not remember. CheckError if Slurm does not answer."""
    number, options = _number_and_options(job)
    done = _run("scontrol", *options, "show", "job", number)
    if not done.returncode:
        return _shown(job, done.stdout)
    if "Invalid job id" not in done.stderr and "not found" not in done.stdout:  # the latter of a task of an array
        raise CheckError(f"scontrol show job {number}: {done.stderr.strip()}")
    return _accounted(job)


def cancel(job: str) -> None:
    """End a job, which first is told to stop. CheckError if Slurm does not do it."""
    _said(*scancel_command(job))


def requeue(job_id: str) -> None:
    """Have Slurm start a job again later. Called from inside the job it is the last thing that is heard of it.

    CheckError if Slurm does not do it.
    """
    _said("scontrol", "requeue", job_id)


def gpus_of_a_node(job: str) -> int:
    """Return the fewest GPUs that a job has on any of its nodes; 0 if Slurm does not answer."""
    number, options = _number_and_options(job)
    try:
        text = _said("scontrol", *options, "show", "job", "--details", number)
    except CheckError:
        return 0
    nodes = re.findall(r"^ +Nodes=(\S+) .*?GRES=(\S*)", text, re.MULTILINE)
    return min((_gpus(gres) for _, gres in nodes), default=0)


def _gpus(gres: str) -> int:
    """Of `gpu:a100:2(IDX:0-1),shard:4`: 2."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:([0-9]+)", gres))


def _shown(job: str, text: str) -> JobState:
    """Of `scontrol show job`. What users choose comes after what is read here, or can hold no new line."""

    def field(name: str) -> str:
        found = re.search(rf"^ +(?:.* )?{name}=(\S*)", text, re.MULTILINE)
        return found[1] if found and found[1] not in ("None", "(null)", "Unknown", "N/A") else ""

    number, cluster = id_and_cluster(job)
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
    """Of `1:0`, an exit code, or `0:9`, a signal, which counts as a shell has it."""
    code, _, number = text.partition(":")
    return int(code or 0) or (128 + int(number) if number.isdecimal() and int(number) else 0)


def _accounted(job: str) -> JobState | None:
    """From the accounting database, which not every cluster has."""
    number, options = _number_and_options(job)
    fields = ("State", "Start", "NodeList", "ExitCode")
    done = _run("sacct", "-X", "-n", "-P", *options, "-j", number, f"--format={','.join(fields)}")
    lines = [line for line in done.stdout.splitlines() if "|" in line] if not done.returncode else []
    if not lines or lines[0].count("|") != len(fields) - 1:
        return None
    state, start, nodes, code = lines[0].split("|")
    cluster = id_and_cluster(job)[1]
    return JobState(number, state.split()[0], start=start, nodes=nodes, exit_code=_exit_code(code), cluster=cluster)


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
