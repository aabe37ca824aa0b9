"""Which trials are stopped early: Tune's schedulers, told of trials by the sweep's own numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from launcher.config.launch_config import TuneOptions
from launcher.tune.driver.unpickled import Unkept
from launcher.tune.records.history import History, Trial

FIRST_RUNG = 9
"""ASHA looks at trials after a ninth and a third of their epochs for the first time, and lets a third go on."""
REDUCTION = 3
FEWEST_OTHERS = 3
"""Trials whose median is worth something."""


@dataclass(frozen=True)
class _Named:
    """All that a scheduler needs to know of a trial: Tune's own ids are others after each start of a sweep."""

    trial_id: str


class _Nobody:
    """Tune's controller as rules see it: with no trial that waits, for which another one would be paused."""

    def get_live_trials(self) -> list[RayTrial]:
        return []


_NOBODY = _Nobody()


class Scheduler(Unkept, FIFOScheduler):
    """Begins trials in their order, and has `rule` decide which are stopped; `on_stop` is told of them.

    `history` is told to the rule first, as it would have seen it. The rule hears of each epoch once, and of a trial
    that it stops no more: had a kill come between, that trial is stopped by what it tells next. None is stopped in
    its last epoch.
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
        self._epochs, self._stopped = dict[int, int](), set[int]()
        for trial in history.runs:
            self._add(trial.number)
        for number, epoch in history.told:
            self._tell_again(history.trials[number], epoch)

    def _add(self, number: int) -> None:
        if number not in self._epochs:
            self._epochs[number] = 0
            self._rule.on_trial_add(None, _Named(str(number)))

    def _tell_again(self, trial: Trial, epoch: int) -> None:
        result = {"epoch": epoch, **trial.reports[epoch]}
        if trial.state == "finished" and epoch == max(trial.reports):
            self._rule.on_trial_complete(None, _Named(str(trial.number)), result)
        else:
            self._stops(trial.number, result)

    def on_trial_add(self, _controller: TuneController, trial: RayTrial) -> None:
        self._add(int(trial.config["number"]))

    def on_trial_result(self, _controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        number = int(trial.config["number"])
        if result.get("state") != "running":
            return str(TrialScheduler.CONTINUE)
        if not self._stops(number, result) or result["epoch"] >= self._last_epoch(number):
            return str(TrialScheduler.CONTINUE)
        self._on_stop(number)
        return str(TrialScheduler.STOP)

    def _stops(self, number: int, result: Mapping[str, Any]) -> bool:
        """Whether the rule has the trial stopped, by this or by what it was told before."""
        if number not in self._stopped and result["epoch"] > self._epochs[number]:
            self._epochs[number] = result["epoch"]
            if self._rule.on_trial_result(_NOBODY, _Named(str(number)), result) == TrialScheduler.STOP:
                self._stopped.add(number)
        return number in self._stopped

    def on_trial_complete(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> None:
        number = int(trial.config["number"])
        if "epoch" in result and number not in self._stopped:
            self._rule.on_trial_complete(tune_controller, _Named(str(number)), result)


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
