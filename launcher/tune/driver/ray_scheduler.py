"""Early stopping: Ray Tune's schedulers, with the trial numbers of the sweep and its history."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from launcher.config.launch_config import TuneOptions
from launcher.tune.driver.unpickled import EmptyPickle
from launcher.tune.records.history import History, Trial

FIRST_RUNG_DIVISOR = 9
"""ASHA's rungs are at a ninth and a third of the epochs; at each rung the best third of the trials continues."""
REDUCTION_FACTOR = 3
MIN_TRIALS_FOR_MEDIAN = 3
"""Minimum number of trials for the median stopping rule."""


@dataclass(frozen=True)
class _TrialId:
    """The part of a Ray trial that schedulers read, with the sweep's number: Tune's ids differ after each start."""

    trial_id: str


class _EmptyController:
    """A Tune controller without live trials, so that schedulers pause no trial in favour of a waiting one."""

    def get_live_trials(self) -> list[RayTrial]:
        return []


_EMPTY_CONTROLLER = _EmptyController()


class EarlyStopScheduler(EmptyPickle, FIFOScheduler):
    """Starts trials in order, stops those that `rule` selects, and calls `on_stop` with the number of each.

    At the start the reports in `history` are replayed to the rule. The rule gets each epoch once, and nothing more
    after it has stopped a trial: if a kill prevented that stop, the trial's next report stops it. No trial is stopped
    in its last epoch.
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
        for number, epoch in history.report_order:
            self._replay(history.trials[number], epoch)

    def _add(self, number: int) -> None:
        if number not in self._epochs:
            self._epochs[number] = 0
            self._rule.on_trial_add(None, _TrialId(str(number)))

    def _replay(self, trial: Trial, epoch: int) -> None:
        result = {"epoch": epoch, **trial.reports[epoch]}
        if trial.state == "finished" and epoch == max(trial.reports):
            self._rule.on_trial_complete(None, _TrialId(str(trial.number)), result)
        else:
            self._is_stopped_by(trial.number, result)

    def on_trial_add(self, _controller: TuneController, trial: RayTrial) -> None:
        self._add(int(trial.config["number"]))

    def on_trial_result(self, _controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> str:
        number = int(trial.config["number"])
        if result.get("state") != "running":
            return str(TrialScheduler.CONTINUE)
        if not self._is_stopped_by(number, result) or result["epoch"] >= self._last_epoch(number):
            return str(TrialScheduler.CONTINUE)
        self._on_stop(number)
        return str(TrialScheduler.STOP)

    def _is_stopped_by(self, number: int, result: Mapping[str, Any]) -> bool:
        """Return whether the rule stops the trial, because of `result` or of an earlier report."""
        if number not in self._stopped and result["epoch"] > self._epochs[number]:
            self._epochs[number] = result["epoch"]
            if self._rule.on_trial_result(_EMPTY_CONTROLLER, _TrialId(str(number)), result) == TrialScheduler.STOP:
                self._stopped.add(number)
        return number in self._stopped

    def on_trial_complete(self, tune_controller: TuneController, trial: RayTrial, result: dict[str, Any]) -> None:
        number = int(trial.config["number"])
        if "epoch" in result and number not in self._stopped:
            self._rule.on_trial_complete(tune_controller, _TrialId(str(number)), result)


def build_stopping_rule(options: TuneOptions, epochs: int) -> TrialScheduler:
    """Return Tune's scheduler that the options name, for runs of at most `epochs` epochs."""
    metric, mode = options.metrics[0], options.modes[0]
    first = max(1, epochs // FIRST_RUNG_DIVISOR)
    if options.scheduler == "asha":
        return AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=max(epochs, first),
            grace_period=first,
            reduction_factor=REDUCTION_FACTOR,
            stop_last_trials=False,
        )
    if options.scheduler == "median":
        return MedianStoppingRule(
            time_attr="epoch", metric=metric, mode=mode, grace_period=first, min_samples_required=MIN_TRIALS_FOR_MEDIAN
        )
    return FIFOScheduler()
