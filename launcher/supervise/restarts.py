"""A run to its end, over as many attempts as it may take: each goes on from the newest checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.launch_config import LaunchConfig
from launcher.plan.plan import LaunchPlan
from launcher.resources.elasticity import usable_nodes
from launcher.supervise.attempt import Attempt
from launcher.supervise.failure_report import Failure, first_failure
from launcher.supervise.stop_requests import Requests

REPEATED = "the same failure twice"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


@dataclass
class Restarts:
    """How many attempts may still follow; a checkpoint more than before makes that as many as at first.

    `gain` says what counts instead of a checkpoint, and which option `allowed` is from.
    """

    allowed: int
    used: int = 0
    gain: str = "checkpoint"
    option: str = " (--max-restarts)"
    _last: str = ""

    def refusal(self, failure: Failure, *, progressed: bool) -> str:
        """Why no attempt follows `failure`; empty if one does."""
        again = failure.fingerprint == self._last and not progressed
        self._last = failure.fingerprint
        if progressed:
            self.used = 0
        if not failure.worth_another_attempt:
            return "another attempt would come to the same"
        if again:
            return f"{REPEATED} without a {self.gain} between"
        if self.used >= self.allowed:
            return f"{self.allowed} restarts without a {self.gain} between{self.option}"
        self.used += 1
        return ""

    @property
    def pause_s(self) -> float:
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.used - 1))


@dataclass(frozen=True)
class Ended:
    """The last attempt and, if it failed, why, and why no other followed."""

    attempt: Attempt
    failure: Failure | None = None
    refusal: str = ""

    @property
    def repeats(self) -> bool:
        """Whether the attempt before failed in the same way, without progress between."""
        return self.refusal.startswith(REPEATED)

    @property
    def for_want_of_a_node(self) -> bool:
        """Whether it is another machine that would help."""
        return self.failure is not None and any(node.is_gone for node in self.attempt.nodes)


@dataclass
class Recovery:
    """Carries out `start` again and again; `say` is told why.

    `plan_of` gives the plan for some of the node slots, numbered from 0, that the launch began with.
    """

    launch: LaunchConfig
    run: RunDir
    requests: Requests
    plan_of: Callable[[tuple[int, ...]], LaunchPlan]
    start: Callable[[LaunchPlan], Attempt]
    say: Callable[[str], None]
    shards: int
    slots: tuple[int, ...] | None = None
    """The node slots of the first attempt; None: all."""

    def to_the_end(self) -> Ended:
        restarts, slots = Restarts(self.launch.max_restarts), self.slots or tuple(range(self.launch.nodes))
        while True:
            attempt = self.start(self.plan_of(slots))
            if attempt.state != "failed":
                return Ended(attempt)
            failure = first_failure(self.run, attempt)
            attempt.cause = failure.cause
            attempt.write()
            left, too_few = self._left(slots, attempt)
            changed = left != slots or self._has_progressed(attempt)
            asked = "a stop was asked for" if self.requests.stop else ""
            if refusal := asked or too_few or restarts.refusal(failure, progressed=changed):
                return Ended(attempt, failure, refusal)
            self._pause(failure, restarts)
            if self.requests.stop:
                self._ended_between(attempt)
                return Ended(attempt)
            slots = left

    def _ended_between(self, attempt: Attempt) -> None:
        """Two attempts, where nothing is lost."""
        if self.requests.interrupted:
            attempt.state = "interrupted"
        else:
            attempt.say_stopped()
        attempt.write()

    def _has_progressed(self, attempt: Attempt) -> bool:
        """Whether there is a later checkpoint than the one that the attempt went on from, if it came that far."""
        try:
            shown = read_json(self.run.rank_progress(0))
            began_at = shown["went_on_after"] or 0
        except (OSError, ValueError, KeyError):
            return False
        return shown["attempt"] == attempt.number and (self.run.newest_step() or 0) > began_at

    def _left(self, slots: tuple[int, ...], attempt: Attempt) -> tuple[tuple[int, ...], str]:
        """The slots for the next attempt and, if they are too few, what to say.

        A lost node's slot is given to a new agent, unless the launch may go on with fewer. If all are lost it may be us
        who were: suspended, or without a network.
        """
        lost = [number for number, node in enumerate(attempt.nodes) if node.is_gone]
        if self.launch.min_nodes is None or len(lost) in (0, len(slots)):
            return slots, ""
        left = tuple(slot for number, slot in enumerate(slots) if number not in lost)
        workers = attempt.num_workers // len(slots)
        count = usable_nodes(len(left), workers, self.shards)
        if count < self.launch.min_nodes:
            return slots, f"of the {len(left)} nodes that are left, {count} could go on, fewer than --elastic allows"
        idle = f"; workers must divide data.shards {self.shards}" if len(left) > count else ""
        self.say(
            f"{len(left)} of {len(slots)} nodes are left: going on with {count * workers} workers on {count}{idle}"
        )
        return left[:count], ""

    def _pause(self, failure: Failure, restarts: Restarts) -> None:
        """Wait a while before the next attempt, or until a stop is asked for."""
        step = self.run.newest_step()
        where = f"from step {step}" if step is not None else "from the beginning"
        self.say(f"attempt {self.run.last_attempt()} failed: {failure.cause}")
        self.say(f"starting again {where} in {restarts.pause_s:g} s, restart {restarts.used} of {restarts.allowed}")
        self.requests.wait(restarts.pause_s, self.run.stop_request)
