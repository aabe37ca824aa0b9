"""Formatting of metrics, values and trials as plain text without control characters."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from launcher.config.plain_text import harmless, in_a_line
from launcher.run_dir.activity import age
from launcher.tune.display.eta import ENDED, reruns
from launcher.tune.records.history import History, Trial, name_of_rerun
from launcher.tune.results.significance import confirmed

SHARES = ("_top1", "_top5")
"""Suffixes of metric names whose values are shares of images, displayed as percentages."""


def metric_text(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith(SHARES) else f"{value:.4g}"


def metrics_text(metrics: Mapping[str, float], names: Collection[str]) -> str:
    """Return the available metrics of `names`, such as `valid/deepest_top1 41.22%, valid/loss 2.31`."""
    return ", ".join(f"{name} {metric_text(name, metrics[name])}" for name in names if name in metrics)


def value_text(value: Any) -> str:
    """Return a value as text, such as `0.31`, `deepest`, `[1,2]` or `true`."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return harmless(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))


def values_text(values: Mapping[str, Any], hidden: Collection[str] = ()) -> str:
    """Return the values that are not hidden, such as `distill.alpha 0.31, distill.teacher deepest`."""
    return ", ".join(f"{key} {value_text(value)}" for key, value in values.items() if key not in hidden)


def counts_text(counts: Mapping[str, int]) -> str:
    """Return the counts, such as `5 finished, 1 stopped early, 3 running, 15 waiting`."""
    named = {"stopped early" if state == "pruned" else state: number for state, number in counts.items()}
    return ", ".join(f"{number} {name}" for name, number in named.items() if number)


def progress_text(history: History, counts: Mapping[str, int], seconds_left: float | None) -> str:
    """Return the progress, such as `7 of 24 ended, about 12 min left`."""
    ended = f"{sum(counts[state] for state in ENDED)} of {sum(counts.values())} ended"
    return ", ".join(filter(None, (ended, reruns_text(history, counts), left_text(seconds_left))))


def reruns_text(history: History, counts: Mapping[str, int]) -> str:
    """Return the progress, such as `3 of 8 runs with further seeds ended`; empty while trials remain."""
    done, total = reruns(history)
    is_due = total and (done or not (counts["waiting"] or counts["running"]))
    return f"{done} of {total} runs with further seeds ended" if is_due else ""


def left_text(seconds: float | None) -> str:
    """Return `about 12 min left`; empty if the time is unknown."""
    return "" if seconds is None else f"about {age(seconds)} left"


def ended_text(trial: Trial, history: History, best: Trial | None, hidden: Collection[str] = ()) -> str:
    """Return `trial 0007 finished: valid/deepest_top1 41.22% (best 43.10% by 0003), distill.alpha 0.31`."""
    if trial.repeats is not None:
        return f"trial {trial.name} has the same config as trial {history.trials[trial.repeats].name}: not run again"
    if trial.state == "failed":
        return f"trial {trial.name} failed: {in_a_line(trial.cause)}"
    if trial.state == "pruned":
        return f"trial {trial.name} stopped early after epoch {max(trial.reports, default=0)}"
    reached = f"{metrics_text(trial.metrics, history.options.metrics)}{_comparison(trial, history, best)}"
    return f"trial {trial.name} finished: {', '.join(filter(None, (reached, values_text(trial.values, hidden))))}"


def restarted_text(fact: Mapping[str, Any]) -> str:
    """Return `warning: trial 0007 was lost and restarts: CAUSE`, with the cause from Ray."""
    name = f"{fact['trial']:04d}" if "trial" in fact else name_of_rerun(fact["config"], fact["seed"])
    return f"warning: trial {name} was lost and restarts: {in_a_line(fact['cause']) or 'Ray gives no reason'}"


def conclusions(history: History, hidden: Collection[str] = ()) -> list[str]:
    """Return a line for the best trial, and one with the paired gain of each winner over the further seeds."""
    ranked = history.ranked()
    best = [f"best: trial {best_text(history, ranked[0], hidden)}"] if ranked else []
    return [*best, *(f"trial {each.config}: {each.finding}" for each in confirmed(history) if each.finding)]


def best_text(history: History, best: Trial | None, hidden: Collection[str] = ()) -> str:
    """Return the best trial's metrics and values, and with several metrics the size of the Pareto front."""
    if best is None:
        return ""
    reached = metrics_text(best.metrics, history.options.metrics)
    text = ": ".join(filter(None, (best.name, ", ".join(filter(None, (reached, values_text(best.values, hidden)))))))
    return f"{text} (one of {len(history.front())} on the Pareto front)" if len(history.options.metrics) > 1 else text


def _comparison(trial: Trial, history: History, best: Trial | None) -> str:
    name, *others = history.options.metrics
    if best is None or (best is trial and not others):
        return " (the best so far)"
    if others:
        front = history.front()
        return f" (one of {len(front)} on the Pareto front)" if trial in front else ""
    return f" (best {metric_text(name, best.metrics[name])} by {best.name})"
