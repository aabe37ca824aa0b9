"""Counts of trials by state, and an estimate of the remaining time."""

from collections.abc import Sequence
from statistics import fmean

from launcher.tune.records.history import History
from launcher.tune.results.significance import BASE

END_STATES = ("finished", "pruned", "failed", "repeated")


def count_trials(history: History, running: int) -> dict[str, int]:
    """Return the number of trials by state, including the `running` ones and those still waiting."""
    states = ["repeated" if trial.duplicate_of is not None else trial.state for trial in history.trials.values()]
    ended = {state: states.count(state) for state in END_STATES}
    total = max(history.options.trials, len(states))
    return {**ended, "running": running, "waiting": max(0, total - sum(ended.values()) - running)}


def count_reruns(history: History) -> tuple[int, int]:
    """Return how many runs of the winners with further seeds have ended, and how many there are; 0 without winners."""
    winners, seeds = history.rank_trials()[: history.options.best], history.options.seeds
    configs = [*(trial.name for trial in winners), BASE] if winners else []
    ended = [each.config for each in history.confirmations]
    ended += [name.rpartition("-seed-")[0] for name in history.failed_reruns]
    return sum(min(seeds, ended.count(config)) for config in configs), seeds * len(configs)


def estimate_seconds_left(history: History, running: Sequence[float], concurrent: int) -> float | None:
    """Estimate the remaining seconds from the mean duration of ended trials; None if none has ended or none runs.

    `running`: completed share of each running trial, from 0 to 1. `concurrent`: number of concurrent trials.
    """
    durations = [trial.seconds for trial in history.runs if trial.state != "asked"]
    if not durations or not concurrent:
        return None
    left_s = [fmean(durations) * (1 - done) for done in running]
    done, total = count_reruns(history)
    pending_s = fmean(durations) * (count_trials(history, len(running))["waiting"] + total - done)
    return max((sum(left_s) + pending_s) / concurrent, *left_s, 0.0)
