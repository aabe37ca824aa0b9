"""Formatting of numbers for people: accuracies in percent, counts with a prefix, durations in minutes."""

import json
import math
from typing import Any

MISSING = "–"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_share(metric: str) -> bool:
    """Return True for an accuracy or an agreement: stored as fractions, displayed in percent."""
    return metric.endswith(("_top1", "_agreement"))


def format_metric(metric: str, value: float | None) -> str:
    """Format a value of a metric."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    if is_share(metric):
        return f"{100 * value:.2f} %"
    factor, prefix = next(((factor, prefix) for factor, prefix in _PREFIXES[:-1] if abs(value) >= factor), (1.0, ""))
    return f"{value / factor:.4g} {prefix}".rstrip()


def format_difference(metric: str, value: float) -> str:
    """Format a difference with its sign; of accuracies in percentage points."""
    if is_share(metric):
        return f"{100 * value:+.2f}"
    text = format_metric(metric, value)
    return text if value < 0 else f"+{text}"


def difference_unit(metric: str) -> str:
    """Return the unit of a metric's differences."""
    return "points" if is_share(metric) else metric


def format_value(value: Any) -> str:
    """Format the value of a config key; a list without brackets."""
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
