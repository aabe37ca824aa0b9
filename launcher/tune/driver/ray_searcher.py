"""The searcher of Ray Tune: hands trials of the sweep to Tune, and passes their results to the sweep state."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.search import Searcher

from fmfsd.errors import SearchFailedError
from launcher.tune.driver.unpickled import EmptyPickle
from launcher.tune.records.history import Trial, TrialState
from launcher.tune.sweep.sweep_state import SweepState
from launcher.tune.sweep.trial_spec import TrialSpec

LOST_TOO_OFTEN = "its Ray process was lost more often than --max-failures allows"
_METRICS = ("valid/", "test/", "cost/")


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial's run.

    `state` is `running` if the scheduler stopped the trial early, and `stopped` after a stop request, from which it can
    be resumed.
    """

    state: str
    metrics: Mapping[str, float]
    cause: str = ""
    seconds: float = 0.0


class RunSource(Protocol):
    """A source of runs, which also gets their results."""

    def next_run(self) -> tuple[int, TrialSpec] | None:
        """Return the number and the specification of the next run, or None if there is none left."""

    def on_report(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def on_restart(self, number: int, cause: str) -> None: ...

    def on_end(self, number: int, result: TrialResult) -> None: ...


class SweepSearcher(EmptyPickle, Searcher):
    """Hands the runs of a source to Tune, at most `concurrent` at a time, while `find_problem` returns none."""

    def __init__(
        self, source: RunSource, *, concurrent: int, find_problem: Callable[[], str], is_stopped: Callable[[], bool]
    ) -> None:
        super().__init__(metric="epoch", mode="max")  # required by Tune, but not used
        self._source, self._concurrent = source, concurrent
        self._trouble, self._is_stopped = find_problem, is_stopped
        self._live = dict[str, int]()

    def save(self, _path: str) -> None:
        """Save nothing: a sweep resumes from its ledger, not from Tune's state."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial. Raise SearchFailedError for a problem while no trial runs that could resolve it."""
        if self._is_stopped():
            return str(Searcher.FINISHED)
        if len(self._live) >= self._concurrent:
            return None
        if trouble := self._trouble():
            if self._live:
                return None
            raise SearchFailedError(trouble)
        next_run = self._source.next_run()
        if next_run is None:
            return str(Searcher.FINISHED)
        self._live[trial_id], spec = next_run
        return {"number": self._live[trial_id], "order": json.dumps(spec.to_dict())}  # text: Tune copies other values

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if metrics := extract_metrics(result):
            self._source.on_report(self._live[trial_id], int(result["epoch"]), metrics)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the result. Ignore errors: `on_trial_lost` follows, with the reason."""
        if error:
            return
        number, last = self._live.pop(trial_id), result or {}
        if metrics := extract_metrics(last):
            self._source.on_report(number, int(last["epoch"]), metrics)
        cause, seconds = str(last.get("cause", "")), float(last.get("seconds", 0.0))
        self._source.on_end(number, TrialResult(str(last.get("state", "stopped")), metrics, cause, seconds))

    def on_trial_restarted(self, trial_id: str, reason: str) -> None:
        """Record that Tune restarts the trial because its process was lost."""
        self._source.on_restart(self._live[trial_id], reason)

    def on_trial_lost(self, trial_id: str, reason: str) -> None:
        """Record that Tune does not restart the trial. If the sweep is stopping, its next start does."""
        state = "stopped" if self._is_stopped() else "failed"
        cause = ": ".join(filter(None, (LOST_TOO_OFTEN, reason)))
        self._source.on_end(self._live.pop(trial_id), TrialResult(state, {}, cause))


def extract_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a trial's result, without the entries that Tune adds."""
    return {name: float(value) for name, value in result.items() if name.startswith(_METRICS)}


class SampledTrials:
    """The trials of a sweep as a source; `on_trial_end` is called after each trial's end."""

    def __init__(
        self,
        state: SweepState,
        to_spec: Callable[[Trial], TrialSpec],
        *,
        is_stopped: Callable[[], bool],
        on_trial_end: Callable[[], None],
    ) -> None:
        self._state, self._to_spec, self._is_stopped, self._done = state, to_spec, is_stopped, on_trial_end

    def next_run(self) -> tuple[int, TrialSpec] | None:
        trial = self._state.next_trial()
        return None if trial is None else (trial.number, self._to_spec(trial))

    def on_report(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        self._state.record_report(self._state.history.trials[number], epoch, metrics)

    def on_restart(self, number: int, cause: str) -> None:
        self._state.append_fact("restarted", trial=number, cause=cause)

    def on_end(self, number: int, result: TrialResult) -> None:
        if result.state == "stopped" and self._is_stopped():
            return  # the next start of the sweep resumes it
        state, cause = self._final_state(result)
        self._state.record_end(number, state, result.metrics, cause=cause, seconds=result.seconds)
        self._done()

    def _final_state(self, how: TrialResult) -> tuple[TrialState, str]:
        required = self._state.history.options.metrics
        missing = [name for name in required if math.isnan(how.metrics.get(name, math.nan))]
        if how.state == "running":
            return "pruned", how.cause
        if how.state == "finished" and not missing:
            return "finished", how.cause
        causes = {"finished": f"it did not report {', '.join(missing)}", "stopped": "its run was stopped by a user"}
        return "failed", how.cause or causes.get(how.state, how.state)
