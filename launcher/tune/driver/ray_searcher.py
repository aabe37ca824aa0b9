"""Between Tune, which runs trials, and the sweep's book, which knows them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.search import Searcher

from fmfsd.errors import SearchFailedError
from launcher.tune.driver.unpickled import Unkept
from launcher.tune.records.history import Trial, TrialState
from launcher.tune.sweep.sweep_state import Book
from launcher.tune.sweep.trial_spec import TrialOrder

LOST = "the process that carried it out was lost more often than --max-failures allows"
_METRICS = ("valid/", "test/", "cost/")


@dataclass(frozen=True)
class Ended:
    """How a trial's run came to its end. `state` is running if a scheduler has stopped it, and stopped if somebody has
    and it may go on."""

    state: str
    metrics: Mapping[str, float]
    cause: str = ""
    seconds: float = 0.0


class Source(Protocol):
    """What is to be run, and who wants to know what became of it."""

    def next_order(self) -> tuple[int, TrialOrder] | None:
        """A number that is the trial's own, and what to do; None: that was all."""

    def reported(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def restarted(self, number: int, cause: str) -> None: ...

    def ended(self, number: int, how: Ended) -> None: ...


class Feeder(Unkept, Searcher):
    """Hands a source's trials to Tune, at most `concurrent` at a time, while `trouble` has nothing to say."""

    def __init__(
        self, source: Source, *, concurrent: int, trouble: Callable[[], str], is_stopped: Callable[[], bool]
    ) -> None:
        super().__init__(metric="epoch", mode="max")  # Tune wants some; which trial is better is not its to say
        self._source, self._concurrent = source, concurrent
        self._trouble, self._is_stopped = trouble, is_stopped
        self._live = dict[str, int]()

    def save(self, _path: str) -> None:
        """Nothing of Tune's is read again."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """SearchFailedError if there is trouble that no trial's end can better."""
        if self._is_stopped():
            return str(Searcher.FINISHED)
        if len(self._live) >= self._concurrent:
            return None
        if trouble := self._trouble():
            if self._live:
                return None
            raise SearchFailedError(trouble)
        found = self._source.next_order()
        if found is None:
            return str(Searcher.FINISHED)
        self._live[trial_id], order = found
        return {"number": self._live[trial_id], "order": json.dumps(order.to_json())}  # Tune copies whatever is no text

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if metrics := metrics_in(result):
            self._source.reported(self._live[trial_id], int(result["epoch"]), metrics)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing for an error: `on_trial_lost` follows, which knows the reason."""
        if error:
            return
        number, told = self._live.pop(trial_id), result or {}
        if metrics := metrics_in(told):
            self._source.reported(number, int(told["epoch"]), metrics)
        cause, seconds = str(told.get("cause", "")), float(told.get("seconds", 0.0))
        self._source.ended(number, Ended(str(told.get("state", "stopped")), metrics, cause, seconds))

    def on_trial_restarted(self, trial_id: str, reason: str) -> None:
        """Tune starts the trial again, as the process that carried it out was lost."""
        self._source.restarted(self._live[trial_id], reason)

    def on_trial_lost(self, trial_id: str, reason: str) -> None:
        """Tune does not start the trial again; the next start of a sweep that is to stop does."""
        state = "stopped" if self._is_stopped() else "failed"
        cause = ": ".join(filter(None, (LOST, reason)))
        self._source.ended(self._live.pop(trial_id), Ended(state, {}, cause))


def metrics_in(result: Mapping[str, Any]) -> dict[str, float]:
    """What a trial has measured, without what Tune adds."""
    return {name: float(value) for name, value in result.items() if name.startswith(_METRICS)}


class Searched:
    """The trials of a search; `done` is called after each one's end."""

    def __init__(
        self,
        book: Book,
        order_of: Callable[[Trial], TrialOrder],
        *,
        is_stopped: Callable[[], bool],
        done: Callable[[], None],
    ) -> None:
        self._book, self._order_of, self._is_stopped, self._done = book, order_of, is_stopped, done

    def next_order(self) -> tuple[int, TrialOrder] | None:
        trial = self._book.next_trial()
        return None if trial is None else (trial.number, self._order_of(trial))

    def reported(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        self._book.reported(self._book.history.trials[number], epoch, metrics)

    def restarted(self, number: int, cause: str) -> None:
        self._book.note("restarted", trial=number, cause=cause)

    def ended(self, number: int, how: Ended) -> None:
        if how.state == "stopped" and self._is_stopped():
            return  # it goes on with the sweep
        state, cause = self._judged(how)
        self._book.ended(number, state, how.metrics, cause=cause, seconds=how.seconds)
        self._done()

    def _judged(self, how: Ended) -> tuple[TrialState, str]:
        wanted = self._book.history.options.metrics
        missing = [name for name in wanted if math.isnan(how.metrics.get(name, math.nan))]
        if how.state == "running":
            return "pruned", how.cause
        if how.state == "finished" and not missing:
            return "finished", how.cause
        words = {"finished": f"it has measured no {', '.join(missing)}", "stopped": "somebody stopped it"}
        return "failed", how.cause or words.get(how.state, how.state)
