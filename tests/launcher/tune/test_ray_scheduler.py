"""Early stopping by real schedulers after an interrupted sweep."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from launcher.config.launch_config import TuneOptions
from launcher.tune.driver.ray_scheduler import EarlyStopScheduler, build_stopping_rule
from launcher.tune.records.history import History
from tests.helpers.histories import TOP1, add_trial, end_trial

EPOCHS = 9


def add_report(history: History, number: int, epoch: int, top1: float) -> None:
    history.add({"fact": "reported", "trial": number, "epoch": epoch, "metrics": {TOP1: top1}})


def scheduler(history: History, stopped: list[int]) -> EarlyStopScheduler:
    rule = build_stopping_rule(history.options, EPOCHS)
    return EarlyStopScheduler(rule, history, last_epoch=lambda _number: EPOCHS, on_stop=stopped.append)


def report_result(tune_scheduler: EarlyStopScheduler, number: int, epoch: int, top1: float) -> str:
    trial: Any = SimpleNamespace(config={"number": number})
    controller: Any = None
    return tune_scheduler.on_trial_result(controller, trial, {"state": "running", "epoch": epoch, TOP1: top1})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_resumed_scheduler_decides_like_an_uninterrupted_one(name: Literal["asha", "median"]) -> None:
    history, stopped = History(TuneOptions(trials=9, scheduler=name)), list[int]()
    uninterrupted = scheduler(history, stopped)
    for number in range(1, 7):
        add_trial(history, number, {})
        uninterrupted.on_trial_add(None, SimpleNamespace(config={"number": number}))
    for epoch in (1, 2, 3):
        for number in range(1, 7):
            if number not in stopped:
                top1 = (6 - number) / 10 + epoch / 100
                decision = report_result(uninterrupted, number, epoch, top1)
                assert decision == report_result(scheduler(history, []), number, epoch, top1)
                if decision == "STOP":
                    end_trial(history, number, "pruned", [])
                add_report(history, number, epoch, top1)
    assert stopped


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_whose_stop_was_interrupted_is_stopped_by_its_next_report(
    name: Literal["asha", "median"],
) -> None:
    history, stopped = History(TuneOptions(trials=9, scheduler=name)), list[int]()
    for number in (1, 2, 3, 4, 5):
        add_trial(history, number, {})
        add_report(history, number, 1, 0.9 - number / 10)
    resumed = scheduler(history, stopped)
    assert report_result(resumed, 5, 1, 0.4) == "STOP"
    assert report_result(resumed, 1, 2, 0.8) == "CONTINUE"
    assert stopped == [5]
