"""Restarts: runs attempts until the run ends; each resumes from the newest checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.launch_config import LaunchConfig
from launcher.plan.launch_plan import LaunchPlan
from launcher.resources.elasticity import usable_nodes
from launcher.supervise.attempt import Attempt
from launcher.supervise.failure_report import Failure, find_first_failure
from launcher.supervise.stop_requests import StopRequests

REPEATED_FAILURE = "the same failure twice"
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0


@dataclass
class RestartBudget:
    """Counts restarts: `allowed` of them in a row without progress; a newer checkpoint resets the count.

    `progress_unit`: what counts as progress; `option`: the option that sets `allowed`; both for messages.
    """

    allowed: int
    used: int = 0
    progress_unit: str = "new checkpoint"
    option: str = " (--max-restarts)"
    _last: str = ""

    def count_restart(self, failure: Failure, *, progressed: bool) -> str:
        """Count a restart after `failure`; return why there is none, "" if there is one."""
        is_repeated = failure.fingerprint == self._last and not progressed
        self._last = failure.fingerprint
        if progressed:
            self.used = 0
        if not failure.worth_another_attempt:
            return "another attempt would fail in the same way"
        if is_repeated:
            return f"{REPEATED_FAILURE} without a {self.progress_unit} in between"
        if self.used >= self.allowed:
            return f"{self.allowed} restarts without a {self.progress_unit} in between{self.option}"
        self.used += 1
        return ""

    @property
    def backoff_s(self) -> float:
        """Seconds to wait before the next attempt (exponential backoff)."""
        return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self.used - 1))


@dataclass(frozen=True)
class RunResult:
    """The last attempt and, if it failed, the failure and why no restart followed (`refusal`)."""

    attempt: Attempt
    failure: Failure | None = None
    refusal: str = ""

    @property
    def is_repeated_failure(self) -> bool:
        """Return whether the attempt before failed in the same way, without progress in between."""
        return self.refusal.startswith(REPEATED_FAILURE)

    @property
    def has_lost_node(self) -> bool:
        """Return whether the run failed because a node was lost, so that another node would help."""
        return self.failure is not None and any(node.is_gone for node in self.attempt.nodes)


@dataclass
class RestartLoop:
    """Runs attempts by `start` until one ends the run; reports each restart by `report`.

    `make_plan` returns the plan for a subset of the launch's node slots, numbered from 0.
    """

    launch: LaunchConfig
    run: RunDir
    requests: StopRequests
    make_plan: Callable[[tuple[int, ...]], LaunchPlan]
    start: Callable[[LaunchPlan], Attempt]
    report: Callable[[str], None]
    shards: int
    slots: tuple[int, ...] | None = None
    """The node slots of the first attempt; None: all."""

    def run_until_end(self) -> RunResult:
        """Run attempts until one does not fail, or until no restart is left or of any use."""
        restarts, slots = RestartBudget(self.launch.max_restarts), self.slots or tuple(range(self.launch.nodes))
        while True:
            attempt = self.start(self.make_plan(slots))
            if attempt.state != "failed":
                return RunResult(attempt)
            failure = find_first_failure(self.run, attempt)
            attempt.cause = failure.cause
            attempt.write_record()
            remaining, too_few = self._remaining_slots(slots, attempt)
            changed = remaining != slots or self._has_progressed(attempt)
            stopped = "a stop was requested" if self.requests.is_stop_requested else ""
            if refusal := stopped or too_few or restarts.count_restart(failure, progressed=changed):
                return RunResult(attempt, failure, refusal)
            self._pause(failure, restarts)
            if self.requests.is_stop_requested:
                self._write_stop(attempt)
                return RunResult(attempt)
            slots = remaining

    def _write_stop(self, attempt: Attempt) -> None:
        """Write that the run was stopped or interrupted between two attempts, where no work is lost."""
        if self.requests.interrupted:
            attempt.state = "interrupted"
        else:
            attempt.write_stopped_outcome()
        attempt.write_record()

    def _has_progressed(self, attempt: Attempt) -> bool:
        """Return whether the attempt saved a newer checkpoint than the one that it resumed from."""
        try:
            progress = read_json(self.run.rank_progress(0))
            resumed_at = progress["went_on_after"] or 0
        except (OSError, ValueError, KeyError):
            return False
        return progress["attempt"] == attempt.number and (self.run.newest_step() or 0) > resumed_at

    def _remaining_slots(self, slots: tuple[int, ...], attempt: Attempt) -> tuple[tuple[int, ...], str]:
        """Return the slots for the next attempt and, if they are too few, the reason to give up.

        Without --elastic a lost node's slot is reused by a new agent. If all nodes are lost, this process itself may
        have been suspended or disconnected, so all slots are tried again.
        """
        lost = [number for number, node in enumerate(attempt.nodes) if node.is_gone]
        if self.launch.min_nodes is None or len(lost) in (0, len(slots)):
            return slots, ""
        remaining = tuple(slot for number, slot in enumerate(slots) if number not in lost)
        workers = attempt.num_workers // len(slots)
        count = usable_nodes(len(remaining), workers, self.shards)
        if count < self.launch.min_nodes:
            return (
                slots,
                f"{count} of the {len(remaining)} remaining nodes are usable, fewer than the minimum of --elastic",
            )
        idle = f"; workers must divide data.shards {self.shards}" if len(remaining) > count else ""
        self.report(
            f"{len(remaining)} of {len(slots)} nodes remain: resuming with {count * workers} workers on {count}{idle}"
        )
        return remaining[:count], ""

    def _pause(self, failure: Failure, restarts: RestartBudget) -> None:
        """Report the failure and wait before the next attempt, or until a stop is requested."""
        step = self.run.newest_step()
        where = f"from step {step}" if step is not None else "from the beginning"
        self.report(f"attempt {self.run.last_attempt()} failed: {failure.cause}")
        self.report(
            f"starting again {where} in {restarts.backoff_s:g} s, restart {restarts.used} of {restarts.allowed}"
        )
        self.requests.wait(restarts.backoff_s, self.run.stop_request)
