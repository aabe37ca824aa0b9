"""What follows a launch in a batch job that could not end what it was to do: Slurm starts the job again, or it says why
not."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmfsd.errors import CheckError, RunFailedError
from launcher.resources.allocation import Allocation
from launcher.transport import slurm_commands

if TYPE_CHECKING:
    from launcher.supervise.restarts import Ended
    from launcher.supervise.stop_requests import Requests

TIME_IS_UP, NODE_IS_GONE = "the job's time is nearly up", "a node is gone"
ADVICE = {
    TIME_IS_UP: "give it more --time, or save more often (checkpoint.every_minutes)",
    NODE_IS_GONE: "look at its nodes, and leave out the bad one with sbatch's --exclude",
}
KILLED_WITHIN_S = 120.0
"""Slurm ends a job at its own request to be started again; its KillWait is 30 s unless a site has another."""


@dataclass(frozen=True)
class Requeue:
    """`reached` tells how far what the job does has come, in numbers that grow; `began_at` is what it told at first."""

    job: Allocation
    reached: Callable[[], int]
    began_at: int

    @classmethod
    def of(cls, job: Allocation, reached: Callable[[], int]) -> "Requeue":
        return cls(job, reached, reached())

    def refusal(self, why: str) -> str:
        """Why the job is not started again; empty if it is. `why` it would be: TIME_IS_UP or NODE_IS_GONE."""
        if self.reached() > self.began_at or self.job.restarts == 0:
            return ""
        return (
            f"{why}, and there is no newer checkpoint than when job {self.job.job_id} was last started again, so it "
            f"would go on like this for ever: {ADVICE[why]}"
        )

    def carry_out(self, why: str, say: Callable[[str], None]) -> None:
        """Does not return if Slurm does it. RunFailedError if it would be of no use, CheckError if Slurm does not."""
        if refusal := self.refusal(why):
            raise RunFailedError(refusal)
        requeue_and_end(self.job, why, say)

    def carry_out_or_warn(self, why: str, say: Callable[[str], None], command: str) -> None:
        """Returns if Slurm does not start the job again; `command` then goes on by hand. RunFailedError as above."""
        try:
            self.carry_out(why, say)
        except CheckError as error:
            say(f"warning: {error}; to go on: {command}")


def reason_to_requeue(ended: "Ended", requests: "Requests") -> str:
    """Return why a job that failed is to be started again: TIME_IS_UP, NODE_IS_GONE or, if it is not, nothing."""
    if requests.time_is_up:
        return TIME_IS_UP
    return NODE_IS_GONE if ended.for_want_of_a_node and not requests.stop else ""


def requeue_and_end(job: Allocation, why: str, say: Callable[[str], None]) -> None:
    """Have Slurm end this job and start it again later. Does not return; CheckError if Slurm does not do it."""
    say(f"{why}: Slurm starts job {job.job_id} again, which goes on from here")
    slurm_commands.requeue(job.job_id)
    time.sleep(KILLED_WITHIN_S)
    raise CheckError(f"job {job.job_id} was to be ended and started again by Slurm, and was not")
