"""Requeue of the batch job that a launch runs in, when its time is up or a node was lost; or why it is not requeued."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmfsd.errors import CheckError, RunFailedError
from launcher.resources.allocation import Allocation
from launcher.transport import slurm_commands

if TYPE_CHECKING:
    from launcher.supervise.restarts import RunResult
    from launcher.supervise.stop_requests import StopRequests

TIME_IS_UP, NODE_IS_GONE = "the job's time is nearly up", "a node is gone"
ADVICE = {
    TIME_IS_UP: "give it more --time, or save more often (checkpoint.every_minutes)",
    NODE_IS_GONE: "check its nodes, and leave out the bad one with sbatch's --exclude",
}
KILLED_WITHIN_S = 120.0
"""Time limit for Slurm to end a job that it requeues; KillWait is 30 s by default."""


@dataclass(frozen=True)
class Requeue:
    """Decides whether a job is requeued, and requeues it.

    `progress` returns the progress of the job's work as a number that grows; `progress_at_start` is its first value.
    """

    job: Allocation
    progress: Callable[[], int]
    progress_at_start: int

    @classmethod
    def create(cls, job: Allocation, progress: Callable[[], int]) -> "Requeue":
        return cls(job, progress, progress())

    def refusal(self, why: str) -> str:
        """Return why the job is not requeued; "" if it is. `why`: the reason to do it, TIME_IS_UP or NODE_IS_GONE."""
        if self.progress() > self.progress_at_start or self.job.restarts == 0:
            return ""
        return (
            f"{why}, and there is no newer checkpoint than when Slurm last requeued job {self.job.job_id}, so it "
            f"would be requeued without end: {ADVICE[why]}"
        )

    def requeue_job(self, why: str, report: Callable[[str], None]) -> None:
        """Requeue the job; does not return. RunFailedError if that would not help, CheckError if Slurm does not."""
        if refusal := self.refusal(why):
            raise RunFailedError(refusal)
        requeue_and_end(self.job, why, report)

    def requeue_job_or_warn(self, why: str, report: Callable[[str], None], command: str) -> None:
        """Requeue the job; if Slurm does not, warn and return: `command` resumes by hand. RunFailedError as above."""
        try:
            self.requeue_job(why, report)
        except CheckError as error:
            report(f"warning: {error}; to resume: {command}")


def reason_to_requeue(result: "RunResult", requests: "StopRequests") -> str:
    """Return the reason to requeue a job that failed: TIME_IS_UP or NODE_IS_GONE; "" if it is not requeued."""
    if requests.time_is_up:
        return TIME_IS_UP
    return NODE_IS_GONE if result.has_lost_node and not requests.is_stop_requested else ""


def requeue_and_end(job: Allocation, why: str, report: Callable[[str], None]) -> None:
    """Requeue this job, which ends it. Does not return; CheckError if Slurm does not requeue it."""
    report(f"{why}: Slurm requeues job {job.job_id}, which resumes from here")
    slurm_commands.requeue(job.job_id)
    time.sleep(KILLED_WITHIN_S)
    raise CheckError(f"Slurm accepted the requeue of job {job.job_id}, but did not end it within {KILLED_WITHIN_S:g} s")
