"""Which trials are stopped early, by real schedulers, after a search that was interrupted."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from launcher.config.launch_config import TuneOptions
from launcher.tune.driver.ray_scheduler import Scheduler, rule_of
from launcher.tune.records.history import History
from tests.helpers.histories import TOP1, ask, end

EPOCHS = 9


def report(history: History, number: int, epoch: int, top1: float) -> None:
    history.add({"fact": "reported", "trial": number, "epoch": epoch, "metrics": {TOP1: top1}})


def scheduler(history: History, stopped: list[int]) -> Scheduler:
    rule = rule_of(history.options, EPOCHS)
    return Scheduler(rule, history, last_epoch=lambda _number: EPOCHS, on_stop=stopped.append)


def tell(found: Scheduler, number: int, epoch: int, top1: float) -> str:
    trial: Any = SimpleNamespace(config={"number": number})
    controller: Any = None
    return found.on_trial_result(controller, trial, {"state": "running", "epoch": epoch, TOP1: top1})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_search_that_goes_on_decides_as_one_that_was_not_interrupted(name: Literal["asha", "median"]) -> None:
    history, stopped = History(TuneOptions(trials=9, scheduler=name)), list[int]()
    whole = scheduler(history, stopped)
    for number in range(1, 7):
        ask(history, number, {})
        whole.on_trial_add(None, SimpleNamespace(config={"number": number}))
    for epoch in (1, 2, 3):
        for number in range(1, 7):
            if number not in stopped:
                top1 = (6 - number) / 10 + epoch / 100
                decided = tell(whole, number, epoch, top1)
                assert decided == tell(scheduler(history, []), number, epoch, top1)
                if decided == "STOP":
                    end(history, number, "pruned", [])
                report(history, number, epoch, top1)
    assert stopped


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_a_kill_has_kept_from_being_stopped_is_stopped_by_its_next_report(
    name: Literal["asha", "median"],
) -> None:
    history, stopped = History(TuneOptions(trials=9, scheduler=name)), list[int]()
    for number in (1, 2, 3, 4, 5):
        ask(history, number, {})
        report(history, number, 1, 0.9 - number / 10)
    going_on = scheduler(history, stopped)
    assert tell(going_on, 5, 1, 0.4) == "STOP"
    assert tell(going_on, 1, 2, 0.8) == "CONTINUE"
    assert stopped == [5]
