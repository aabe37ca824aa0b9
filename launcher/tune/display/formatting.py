"""How a search's metrics, values and trials are said to people: plain text in which no byte hurts a terminal."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from launcher.config.plain_text import harmless, in_a_line
from launcher.run_dir.activity import age
from launcher.tune.display.eta import ENDED, reruns
from launcher.tune.records.history import History, Trial, name_of_rerun
from launcher.tune.results.significance import confirmed

SHARES = ("_top1", "_top5")
"""Ends of the names of metrics that are shares of images."""


def metric_text(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith(SHARES) else f"{value:.4g}"


def metrics_text(metrics: Mapping[str, float], names: Collection[str]) -> str:
    """Those of `names` that there are: `valid/deepest_top1 41.22%, valid/loss 2.31`."""
    return ", ".join(f"{name} {metric_text(name, metrics[name])}" for name in names if name in metrics)


def value_text(value: Any) -> str:
    """`0.31`, `deepest`, `[1,2]`, `true`."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return harmless(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))


def values_text(values: Mapping[str, Any], hidden: Collection[str] = ()) -> str:
    """`distill.alpha 0.31, distill.teacher deepest`."""
    return ", ".join(f"{key} {value_text(value)}" for key, value in values.items() if key not in hidden)


def counts_text(counts: Mapping[str, int]) -> str:
    """`5 finished, 1 stopped early, 3 running, 15 waiting`."""
    named = {"stopped early" if state == "pruned" else state: number for state, number in counts.items()}
    return ", ".join(f"{number} {name}" for name, number in named.items() if number)


def progress_text(history: History, counts: Mapping[str, int], seconds_left: float | None) -> str:
    """Return `7 of 24 ended, about 12 min left`."""
    ended = f"{sum(counts[state] for state in ENDED)} of {sum(counts.values())} ended"
    return ", ".join(filter(None, (ended, reruns_text(history, counts), left_text(seconds_left))))


def reruns_text(history: History, counts: Mapping[str, int]) -> str:
    """Return `3 of 8 runs with further seeds ended`, or nothing while trials are left."""
    done, total = reruns(history)
    is_due = total and (done or not (counts["waiting"] or counts["running"]))
    return f"{done} of {total} runs with further seeds ended" if is_due else ""


def left_text(seconds: float | None) -> str:
    """`about 12 min left`; empty while that is not known."""
    return "" if seconds is None else f"about {age(seconds)} left"


def ended_text(trial: Trial, history: History, best: Trial | None, hidden: Collection[str] = ()) -> str:
    """`trial 0007 finished: valid/deepest_top1 41.22% (best 43.10% by 0003), distill.alpha 0.31`."""
    if trial.repeats is not None:
        return f"trial {trial.name} is {history.trials[trial.repeats].name} again, and is not run"
    if trial.state == "failed":
        return f"trial {trial.name} failed: {in_a_line(trial.cause)}"
    if trial.state == "pruned":
        return f"trial {trial.name} stopped early after epoch {max(trial.reports, default=0)}"
    reached = f"{metrics_text(trial.metrics, history.options.metrics)}{_beside(trial, history, best)}"
    return f"trial {trial.name} finished: {', '.join(filter(None, (reached, values_text(trial.values, hidden))))}"


def restarted_text(fact: Mapping[str, Any]) -> str:
    """Return `warning: trial 0007 was lost and starts again: CAUSE`; the cause is Ray's."""
    name = f"{fact['trial']:04d}" if "trial" in fact else name_of_rerun(fact["config"], fact["seed"])
    return f"warning: trial {name} was lost and starts again: {in_a_line(fact['cause']) or 'Ray gives no reason'}"


def conclusions(history: History, hidden: Collection[str] = ()) -> list[str]:
    """Return a line for the best trial, and one for each winner's paired gain over further seeds."""
    ranked = history.ranked()
    best = [f"best: trial {best_text(history, ranked[0], hidden)}"] if ranked else []
    return [*best, *(f"trial {each.config}: {each.finding}" for each in confirmed(history) if each.finding)]


def best_text(history: History, best: Trial | None, hidden: Collection[str] = ()) -> str:
    """The best trial's result and values, or of several metrics the front; empty without any."""
    if best is None:
        return ""
    reached = metrics_text(best.metrics, history.options.metrics)
    text = ": ".join(filter(None, (best.name, ", ".join(filter(None, (reached, values_text(best.values, hidden)))))))
    return f"{text} (one of {len(history.front())} on the front)" if len(history.options.metrics) > 1 else text


def _beside(trial: Trial, history: History, best: Trial | None) -> str:
    name, *others = history.options.metrics
    if best is None or (best is trial and not others):
        return " (the best so far)"
    if others:
        front = history.front()
        return f" (of the front's {len(front)})" if trial in front else ""
    return f" (best {metric_text(name, best.metrics[name])} by {best.name})"
