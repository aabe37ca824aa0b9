"""The batch jobs that were submitted for a run, as its folder names them and as Slurm knows them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.transport import slurm_commands
from launcher.transport.slurm_commands import JobState


@dataclass(frozen=True)
class Job:
    """`log` is where the job's own shell speaks, a path; empty if that is not known.

    `cluster`: the one that was named at its submission; empty: the default one.
    """

    id: str
    log: str = ""
    cluster: str = ""

    @property
    def reference(self) -> str:
        """Return its name for `launcher.transport.slurm_commands`."""
        return f"{self.id};{self.cluster}" if self.cluster else self.id


def jobs_of(run: RunDir) -> tuple[Job, ...]:
    """Oldest first; none if none was submitted."""
    try:
        return tuple(
            Job(str(job["id"]), str(job.get("log") or ""), str(job.get("cluster") or "")) for job in _entries(run)
        )
    except (KeyError, TypeError, AttributeError):
        return ()


def add_job(run: RunDir, job: str, *, command: Sequence[str], log: Path) -> None:
    """One that has just been submitted; when is written in seconds since 1970. OSError."""
    number, cluster = slurm_commands.id_and_cluster(job)
    where = {"cluster": cluster} if cluster else {}
    entry = {"id": number, **where, "submitted": time.time(), "command": list(command), "log": str(log)}
    write_json(run.jobs, {"jobs": [*_entries(run), entry]})


def _entries(run: RunDir) -> list[dict[str, Any]]:
    try:
        return list(read_json(run.jobs)["jobs"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def states_seen(run: RunDir) -> tuple[list[JobState], list[Problem]]:
    """Of the run's jobs that Slurm remembers; and what is wrong if it does not answer from here."""
    try:
        return [state for job in jobs_of(run) if (state := slurm_commands.job_state(job.reference))], []
    except CheckError as error:
        return [], error.problems
