"""Names of metrics in trackers: `train/loss`, `valid/deepest_top1`."""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
"""A line of metrics.jsonl."""


_COMMON_KEYS = ("step", "epoch", "split", "time")


def flatten_record(record: Record) -> dict[str, float]:
    """Return the record's metrics under the names of a search: `train/loss`, `valid/deepest_top1`."""
    return {f"{record['split']}/{name}": value for name, value in record.items() if name not in _COMMON_KEYS}
