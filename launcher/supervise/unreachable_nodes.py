"""Requeues a Slurm job whose nodes do not answer the checks."""

from collections.abc import Callable

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import UnreachableError
from launcher.supervise.requeue import requeue_and_end
from launcher.transport import slurm_commands

MOST_REQUEUES = 3
"""Limit of requeues in a row because of failed checks."""


def handle_unreachable(error: UnreachableError, job: Allocation, run: RunDir, report: Callable[[str], None]) -> None:
    """Requeue a batch job whose nodes did not answer. CheckError if the job has ended or Slurm does not requeue it.

    Returns if `error` itself is to be raised: outside of a batch job, or after MOST_REQUEUES requeues.
    """
    if ended := _describe_end(job):
        remedy = "to train on this machine: --on local; else unset SLURM_JOB_ID"
        raise CheckError([Problem(f"SLURM_JOB_ID={job.job_id}", f"{ended}: {remedy}")])
    if not job.is_batch or job.restarts - _last_restart(run, job) > MOST_REQUEUES:
        return
    report(str(error))
    requeue_and_end(job, "a node did not answer the checks", report)


def _describe_end(job: Allocation) -> str:
    """Return why the job is not running; empty if it is, or if Slurm does not answer."""
    try:
        state = slurm_commands.query_job_state(job.job_id)
    except CheckError:
        return ""
    if state is None:
        return "Slurm does not know this job"
    return f"that job has ended ({state.state})" if state.is_over else ""


def _last_restart(run: RunDir, job: Allocation) -> int:
    """Return the restart count of `job` when it last passed its checks, from the run's manifest; -1 if it never did."""
    try:
        entries = [entry.get("job") or {} for entry in read_json(run.manifest)["launches"]]
    except (OSError, ValueError, KeyError):
        return -1
    return max((int(entry["restart"]) for entry in entries if entry.get("id") == job.job_id), default=-1)
