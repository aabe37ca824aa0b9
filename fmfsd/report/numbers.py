"""Numbers as people read them: accuracies in percent, counts with a prefix, durations in minutes."""

import json
import math
from typing import Any

NOTHING = "–"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_share(metric: str) -> bool:
    """Whether it is an accuracy, which files hold as a fraction and people read in percent."""
    return metric.endswith("_top1")


def shown_metric(metric: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING if value is None else str(value)
    if is_share(metric):
        return f"{100 * value:.2f} %"
    factor, prefix = next(((factor, prefix) for factor, prefix in _PREFIXES[:-1] if abs(value) >= factor), (1.0, ""))
    return f"{value / factor:.4g} {prefix}".rstrip()


def shown_difference(metric: str, value: float) -> str:
    """With its sign; of accuracies in percentage points."""
    if is_share(metric):
        return f"{100 * value:+.2f}"
    text = shown_metric(metric, value)
    return text if value < 0 else f"+{text}"


def unit_of_differences(metric: str) -> str:
    return "points" if is_share(metric) else metric


def shown_value(value: Any) -> str:
    """Of a config key; a list without its brackets."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_value, value)) or "none of them"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def shown_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Two to eight round numbers around low and high, a step of 1, 2 or 5 times a power of ten apart."""
    if low == high:
        low, high = low - (abs(low) / 10 or 1.0), high + (abs(high) / 10 or 1.0)
    span = high - low
    step = next(step for step in _steps(span / 5) if span / step <= 6)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [step * number for number in range(first, last + 1)]


def _steps(about: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10(about))
    return [power * factor for factor in (1, 2, 5, 10, 20)]


def tick_labels(values: list[float], *, percent: bool = False) -> list[str]:
    """As short as their distance allows, with one unit for all."""
    if percent:
        return [f"{text} %" for text in _equally_precise([100 * value for value in values])]
    largest = max(map(abs, values))
    factor, prefix = next(((factor, prefix) for factor, prefix in _PREFIXES if largest >= 10 * factor), (1.0, ""))
    return [f"{text} {prefix}".rstrip() for text in _equally_precise([value / factor for value in values])]


def _equally_precise(values: list[float]) -> list[str]:
    digits = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return [f"{value + 0.0:.{digits}f}" for value in values]
