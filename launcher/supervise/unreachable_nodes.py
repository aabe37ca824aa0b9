"""What follows in a Slurm job whose nodes do not answer the checks."""

from collections.abc import Callable

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import UnreachableError
from launcher.supervise.requeue import requeue_and_end
from launcher.transport import slurm_commands

MOST_REQUEUES = 3
"""How often in a row a job is requeued because of a failed check."""


def handle_unreachable(error: UnreachableError, job: Allocation, run: RunDir, say: Callable[[str], None]) -> None:
    """Requeue a batch job whose nodes did not answer. CheckError if its job has ended, or after MOST_REQUEUES.

    Returns if there is nothing to add to `error`.
    """
    if found := _end_of(job):
        remedy = "to train on this machine: --on local; else unset SLURM_JOB_ID"
        raise CheckError([Problem(f"SLURM_JOB_ID={job.job_id}", f"{found}: {remedy}")])
    if not job.is_batch or job.restarts - _last_restart(run, job) > MOST_REQUEUES:
        return
    say(str(error))
    requeue_and_end(job, "a node did not answer the checks", say)


def _end_of(job: Allocation) -> str:
    """Return why the job is not running; empty if it is, or if Slurm does not answer."""
    try:
        state = slurm_commands.job_state(job.job_id)
    except CheckError:
        return ""
    if state is None:
        return "Slurm does not know this job"
    return f"that job has ended ({state.state})" if state.is_over else ""


def _last_restart(run: RunDir, job: Allocation) -> int:
    """Return the restart of `job` that last passed its checks, as the run's manifest has it; -1 if none did."""
    try:
        entries = [entry.get("job") or {} for entry in read_json(run.manifest)["launches"]]
    except (OSError, ValueError, KeyError):
        return -1
    return max((int(entry["restart"]) for entry in entries if entry.get("id") == job.job_id), default=-1)
