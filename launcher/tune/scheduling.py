"""Which trials are stopped early: Tune's schedulers, told of trials by the sweep's own numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from launcher.config import TuneOptions
from launcher.tune.history import History
from launcher.tune.unkept import Unkept

FIRST_RUNG = 9
"""ASHA looks at trials after a ninth and a third of their epochs for the first time, and lets a third go on."""
REDUCTION = 3
FEWEST_OTHERS = 3
"""Trials whose median is worth something."""


@dataclass(frozen=True)
class _Named:
    """All that a scheduler needs to know of a trial: Tune's own ids are others after each start of a sweep."""

    trial_id: str


class Scheduler(Unkept, FIFOScheduler):
    """Begins trials in their order, and has `rule` decide which are stopped; `on_stop` is told of them.

    `history` is told to the rule first, as if it had seen it. A trial is not stopped in its last epoch.
    """

    def __init__(
        self,
        rule: TrialScheduler,
        history: History,
        *,
        last_epoch: Callable[[int], int],
        on_stop: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._rule, self._last_epoch, self._on_stop = rule, last_epoch, on_stop
        self._known = set[str]()
        for trial in history.runs:
            named = self._add(str(trial.number))
            for epoch, metrics in sorted(trial.reports.items()):
                rule.on_trial_result(None, named, {"epoch": epoch, **metrics})
            if trial.state != "asked" and trial.reports:
                rule.on_trial_complete(None, named, {"epoch": max(trial.reports), **trial.metrics})

    def _add(self, number: str) -> _Named:
        named = _Named(number)
        if number not in self._known:
            self._known.add(number)
            self._rule.on_trial_add(None, named)
        return named

    def on_trial_add(self, _controller: TuneController, trial: RayTrial) -> None:
        self._add(str(trial.config["number"]))

    def on_trial_result(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        number = int(trial.config["number"])
        if result.get("state") != "running":
            return str(TrialScheduler.CONTINUE)
        decision = self._rule.on_trial_result(tune_controller, _Named(str(number)), result)
        if decision != TrialScheduler.STOP or result["epoch"] >= self._last_epoch(number):
            return str(TrialScheduler.CONTINUE)
        self._on_stop(number)
        return str(TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> None:
        if "epoch" in result:
            self._rule.on_trial_complete(tune_controller, _Named(str(trial.config["number"])), result)


def rule_of(options: TuneOptions, epochs: int) -> TrialScheduler:
    """The scheduler of that name for runs of at most so many epochs."""
    metric, mode = options.metrics[0], options.modes[0]
    first = max(1, epochs // FIRST_RUNG)
    if options.scheduler == "asha":
        return AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=max(epochs, first),
            grace_period=first,
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
    if options.scheduler == "median":
        return MedianStoppingRule(
            time_attr="epoch", metric=metric, mode=mode, grace_period=first, min_samples_required=FEWEST_OTHERS
        )
    return FIFOScheduler()
