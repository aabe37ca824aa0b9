"""Tracker interface, and the metric names of a record."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

Record = Mapping[str, Any]
"""A line of metrics.jsonl."""
_COMMON_KEYS = ("step", "epoch", "split", "time")


class Tracker(AbstractContextManager["Tracker"], Protocol):
    """An experiment tracker. One background thread enters and uses it; the training does not wait for it."""

    def log(self, record: Record) -> None:
        """Log the next record. In a resumed run too, the first record after entering is the run's first."""


def flatten_record(record: Record) -> dict[str, float]:
    """Return the record's metrics under the names of a search: `train/loss`, `valid/deepest_top1`."""
    return {f"{record['split']}/{name}": value for name, value in record.items() if name not in _COMMON_KEYS}
