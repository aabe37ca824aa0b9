"""Batch jobs that were submitted for a run: as recorded in its folder, and their state in Slurm."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.transport import slurm_commands
from launcher.transport.slurm_job_state import JobState


@dataclass(frozen=True)
class BatchJob:
    """A submitted batch job. `log`: path of the log of the batch script; empty: unknown.

    `cluster`: the cluster named at submission; empty: the default cluster.
    """

    id: str
    log: str = ""
    cluster: str = ""

    @property
    def reference(self) -> str:
        """Return the job's reference for `launcher.transport.slurm_commands`."""
        return f"{self.id};{self.cluster}" if self.cluster else self.id


def read_jobs(run: RunDir) -> tuple[BatchJob, ...]:
    """Return the run's jobs, oldest first; empty if none was submitted."""
    try:
        return tuple(
            BatchJob(str(job["id"]), str(job.get("log") or ""), str(job.get("cluster") or ""))
            for job in _read_entries(run)
        )
    except (KeyError, TypeError, AttributeError):
        return ()


def add_job(run: RunDir, job: str, *, command: Sequence[str], log: Path) -> None:
    """Record a job that was just submitted, with its time of submission (Unix, s). OSError."""
    number, cluster = slurm_commands.split_job_reference(job)
    where = {"cluster": cluster} if cluster else {}
    entry = {"id": number, **where, "submitted": time.time(), "command": list(command), "log": str(log)}
    write_json(run.jobs, {"jobs": [*_read_entries(run), entry]})


def _read_entries(run: RunDir) -> list[dict[str, Any]]:
    try:
        return list(read_json(run.jobs)["jobs"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def query_job_states(run: RunDir) -> tuple[list[JobState], list[Problem]]:
    """Return the states of the run's jobs that Slurm knows, and the problems if Slurm does not respond."""
    try:
        return [state for job in read_jobs(run) if (state := slurm_commands.query_job_state(job.reference))], []
    except CheckError as error:
        return [], error.problems
