"""How many trials are where, and about how long the rest will take."""

from collections.abc import Sequence
from statistics import fmean

from launcher.tune.records.history import History
from launcher.tune.results.significance import BASE

ENDED = ("finished", "pruned", "failed", "repeated")


def counts(history: History, running: int) -> dict[str, int]:
    """Trials by state, with the `running` ones and, of all that are to be, those that wait for their turn."""
    states = ["repeated" if trial.repeats is not None else trial.state for trial in history.trials.values()]
    found = {state: states.count(state) for state in ENDED}
    total = max(history.options.trials, len(states))
    return {**found, "running": running, "waiting": max(0, total - sum(found.values()) - running)}


def reruns(history: History) -> tuple[int, int]:
    """Return how many runs of the winners with further seeds have ended, and how many there are; 0 without winners."""
    winners, seeds = history.ranked()[: history.options.best], history.options.seeds
    configs = [*(trial.name for trial in winners), BASE] if winners else []
    ended = [each.config for each in history.confirmations]
    ended += [name.rpartition("-seed-")[0] for name in history.unconfirmed]
    return sum(min(seeds, ended.count(config)) for config in configs), seeds * len(configs)


def seconds_left(history: History, running: Sequence[float], at_a_time: int) -> float | None:
    """By what ended trials took on average; None while none has ended or none runs.

    `running`: the share that each running trial has done, from 0 to 1. `at_a_time` is what runs beside one another.
    """
    took = [trial.seconds for trial in history.runs if trial.state != "asked"]
    if not took or not at_a_time:
        return None
    each = [fmean(took) * (1 - done) for done in running]
    done, total = reruns(history)
    to_come = fmean(took) * (counts(history, len(running))["waiting"] + total - done)
    return max((sum(each) + to_come) / at_a_time, *each, 0.0)
