"""States of Slurm jobs: which are waiting, running, completing or ended."""

import re
from dataclasses import dataclass

ENDED_STATES = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
"""States of a job that has ended."""


WAITING_STATES = (
    *("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    "EXPEDITING",
)
"""States from which a job may start, or start again. EXPEDITING: since Slurm 25.11."""


COMPLETING_STATES = ("COMPLETING", "STAGE_OUT")
"""States in which a job has ended, and Slurm still cleans up."""


@dataclass(frozen=True)
class JobState:
    """State of a job in Slurm's terms. `start`: when it started or is expected to start; empty: unknown.

    `cluster`: the cluster named at submission; empty: the default cluster.
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
        """Return the job's reference for the functions of this module."""
        return f"{self.id};{self.cluster}" if self.cluster else self.id

    @property
    def states(self) -> frozenset[str]:
        """Return the job's state and flags. Newer versions of Slurm print several, as in COMPLETED,COMPLETING."""
        return frozenset(re.split("[,+]", self.state))

    @property
    def is_waiting(self) -> bool:
        return not self.states.isdisjoint(WAITING_STATES)

    @property
    def is_over(self) -> bool:
        return not self.states.isdisjoint(ENDED_STATES) and self.states.isdisjoint(
            (*WAITING_STATES, *COMPLETING_STATES)
        )

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        where = f" on {self.nodes}" if self.nodes else ""
        cluster = f" of cluster {self.cluster}" if self.cluster else ""
        expected = f", expected to start at {self.start}" if self.is_waiting and self.start else ""
        return f"job {self.id}{cluster}: {self.state}{why}{where}{expected}"
