"""Formatting of metrics, values and trials as plain text without control characters."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from launcher.config.plain_text import sanitize_line, to_single_line
from launcher.run_dir.activity import format_age
from launcher.tune.display.eta import END_STATES, count_reruns
from launcher.tune.records.history import History, Trial, format_rerun_name
from launcher.tune.results.significance import compare_with_base

SHARE_SUFFIXES = ("_top1", "_top5")
"""Suffixes of metric names whose values are shares of images, displayed as percentages."""


def format_metric(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith(SHARE_SUFFIXES) else f"{value:.4g}"


def format_metrics(metrics: Mapping[str, float], names: Collection[str]) -> str:
    """Return the available metrics of `names`, such as `valid/deepest_top1 41.22%, valid/loss 2.31`."""
    return ", ".join(f"{name} {format_metric(name, metrics[name])}" for name in names if name in metrics)


def format_value(value: Any) -> str:
    """Return a value as text, such as `0.31`, `deepest`, `[1,2]` or `true`."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return sanitize_line(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))


def format_values(values: Mapping[str, Any], hidden: Collection[str] = ()) -> str:
    """Return the values that are not hidden, such as `distill.alpha 0.31, distill.teacher deepest`."""
    return ", ".join(f"{key} {format_value(value)}" for key, value in values.items() if key not in hidden)


def format_counts(counts: Mapping[str, int]) -> str:
    """Return the counts, such as `5 finished, 1 stopped early, 3 running, 15 waiting`."""
    named = {"stopped early" if state == "pruned" else state: number for state, number in counts.items()}
    return ", ".join(f"{number} {name}" for name, number in named.items() if number)


def format_progress(history: History, counts: Mapping[str, int], seconds_left: float | None) -> str:
    """Return the progress, such as `7 of 24 ended, about 12 min left`."""
    ended = f"{sum(counts[state] for state in END_STATES)} of {sum(counts.values())} ended"
    return ", ".join(filter(None, (ended, format_reruns(history, counts), format_time_left(seconds_left))))


def format_reruns(history: History, counts: Mapping[str, int]) -> str:
    """Return the progress, such as `3 of 8 runs with further seeds ended`; empty while trials remain."""
    done, total = count_reruns(history)
    is_due = total and (done or not (counts["waiting"] or counts["running"]))
    return f"{done} of {total} runs with further seeds ended" if is_due else ""


def format_time_left(seconds: float | None) -> str:
    """Return `about 12 min left`; empty if the time is unknown."""
    return "" if seconds is None else f"about {format_age(seconds)} left"


def format_trial_end(trial: Trial, history: History, best: Trial | None, hidden: Collection[str] = ()) -> str:
    """Return `trial 0007 finished: valid/deepest_top1 41.22% (best 43.10% by 0003), distill.alpha 0.31`."""
    if trial.duplicate_of is not None:
        return (
            f"trial {trial.name} has the same config as trial {history.trials[trial.duplicate_of].name}: not run again"
        )
    if trial.state == "failed":
        return f"trial {trial.name} failed: {to_single_line(trial.cause)}"
    if trial.state == "pruned":
        return f"trial {trial.name} stopped early after epoch {max(trial.reports, default=0)}"
    reached = f"{format_metrics(trial.metrics, history.options.metrics)}{_comparison(trial, history, best)}"
    return f"trial {trial.name} finished: {', '.join(filter(None, (reached, format_values(trial.values, hidden))))}"


def format_trial_restart(fact: Mapping[str, Any]) -> str:
    """Return `warning: trial 0007 was lost and restarts: CAUSE`, with the cause from Ray."""
    name = f"{fact['trial']:04d}" if "trial" in fact else format_rerun_name(fact["config"], fact["seed"])
    return f"warning: trial {name} was lost and restarts: {to_single_line(fact['cause']) or 'Ray gives no reason'}"


def format_conclusions(history: History, hidden: Collection[str] = ()) -> list[str]:
    """Return a line for the best trial, and one with the paired gain of each winner over the further seeds."""
    ranked = history.rank_trials()
    best = [f"best: trial {format_best(history, ranked[0], hidden)}"] if ranked else []
    return [*best, *(f"trial {each.config}: {each.finding}" for each in compare_with_base(history) if each.finding)]


def format_best(history: History, best: Trial | None, hidden: Collection[str] = ()) -> str:
    """Return the best trial's metrics and values, and with several metrics the size of the Pareto front."""
    if best is None:
        return ""
    reached = format_metrics(best.metrics, history.options.metrics)
    text = ": ".join(filter(None, (best.name, ", ".join(filter(None, (reached, format_values(best.values, hidden)))))))
    return (
        f"{text} (one of {len(history.pareto_front())} on the Pareto front)"
        if len(history.options.metrics) > 1
        else text
    )


def _comparison(trial: Trial, history: History, best: Trial | None) -> str:
    name, *others = history.options.metrics
    if best is None or (best is trial and not others):
        return " (the best so far)"
    if others:
        front = history.pareto_front()
        return f" (one of {len(front)} on the Pareto front)" if trial in front else ""
    return f" (best {format_metric(name, best.metrics[name])} by {best.name})"
