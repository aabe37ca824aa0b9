"""How many trials are where, and about how long the rest will take."""

from collections.abc import Sequence
from statistics import fmean

from launcher.tune.history import History

ENDED = ("finished", "pruned", "failed", "repeated")


def counts(history: History, running: int) -> dict[str, int]:
    """Trials by state, with the `running` ones and, of all that are to be, those that wait for their turn."""
    states = ["repeated" if trial.repeats is not None else trial.state for trial in history.trials.values()]
    found = {state: states.count(state) for state in ENDED}
    total = max(history.options.trials, len(states))
    return {**found, "running": running, "waiting": max(0, total - sum(found.values()) - running)}


def seconds_left(history: History, running: Sequence[float], at_a_time: int) -> float | None:
    """By what ended trials took on average; None while none has ended or none runs.

    `running`: the share that each running trial has done, from 0 to 1. `at_a_time` is what runs beside one another.
    """
    took = [trial.seconds for trial in history.runs if trial.state != "asked"]
    if not took or not at_a_time:
        return None
    each = [fmean(took) * (1 - done) for done in running]
    to_come = fmean(took) * counts(history, len(running))["waiting"]
    return max((sum(each) + to_come) / at_a_time, *each, 0.0)
