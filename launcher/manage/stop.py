"""`fmfsd-launch stop` and `cancel`: cancel a run's jobs in Slurm, and request the launch of a run or search to end.

The request is a file in the run directory, so that it works from every host that can access it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import STOP_NOW, RunDir
from fmfsd.system.atomic_files import read_json, write_atomic
from launcher.run_dir.activity import SILENCE_LIMIT_S, RunActivity, find_runs
from launcher.run_dir.batch_jobs import query_job_states
from launcher.transport import slurm_commands
from launcher.transport.slurm_job_state import JobState

POLL_S = 0.2


def request_stop(folder: Path, *, wait: bool) -> str:
    """Request a stop with a checkpoint; return the message to the user. CheckError if there is nothing to stop."""
    return _end(find_runs(folder), "", "requested to stop", wait=wait)


def request_cancel(folder: Path, *, wait: bool) -> str:
    """Request an immediate end; return the message to the user. CheckError if there is nothing to end."""
    return _end(find_runs(folder), STOP_NOW, "requested to end immediately", wait=wait)


def _end(runs: Sequence[RunDir], request: str, label: str, *, wait: bool) -> str:
    """Send the request to all runs, then wait for each if `wait`. CheckError if no launch is active in any of them."""
    results, problems = dict[Path, _RequestResult](), list[Problem]()
    for run in runs:
        try:
            results[run.path] = _send_request(run, request)
        except CheckError as error:
            problems += error.problems
    if not results:
        raise CheckError(problems)
    return "\n".join(
        f"{f'{path.name}: ' if len(runs) > 1 else ''}{line}"
        for path, result in results.items()
        for line in result.lines(RunDir(path), label, wait=wait)
    )


@dataclass(frozen=True)
class _RequestResult:
    """Result of a request: messages about `cancelled` jobs, and the `owner` that was requested to end; "": none."""

    cancelled: list[str]
    owner: str
    problems: list[Problem]

    def lines(self, run: RunDir, label: str, *, wait: bool) -> list[str]:
        ended = [_wait_for_end(run) if wait else f"{label}: {self.owner}"] if self.owner else []
        return [*self.cancelled, *ended, *map(str, self.problems)]


def _send_request(run: RunDir, request: str) -> _RequestResult:
    """Send the request to the launch that is or may be active.

    A job that is pending, or whose launch has not reported yet, is cancelled in Slurm; a launch in it saves a
    checkpoint on Slurm's signal.
    """
    jobs, problems = query_job_states(run)
    is_inactive = not RunActivity.read(run).is_under_way
    cancelled = [_cancel_job(job) for job in jobs if not job.is_over and (job.is_waiting or is_inactive)]
    work = RunActivity.read(run)
    is_requested = work.is_under_way or (not cancelled and work.may_be_elsewhere)
    if is_requested:
        write_atomic(run.stop_request, request)
    if not cancelled and not is_requested:
        last = f"; the last was {work.owner}" if work.owner else ""
        raise CheckError([Problem(str(run.path), f"no launch is active there{last}"), *problems])
    return _RequestResult(cancelled, work.owner_description if is_requested else "", problems)


def _cancel_job(job: JobState) -> str:
    slurm_commands.cancel(job.reference)
    return f"cancelled in Slurm: {job}"


def _wait_for_end(run: RunDir) -> str:
    """Wait until the launch has ended and another may start; return the message to the user."""
    while _is_active(run):
        time.sleep(POLL_S)
    try:
        return f"ended: {read_json(run.outcome)['state']}"
    except (OSError, ValueError, KeyError):
        return "ended: without an outcome"


def _is_active(run: RunDir) -> bool:
    """Return whether a launch is active; one on another host counts as active until it removes the request."""
    work = RunActivity.read(run)
    elsewhere = work.owner is not None and not work.owner.is_local and work.quiet_s < SILENCE_LIMIT_S
    return work.is_under_way or (elsewhere and run.stop_request.exists())
