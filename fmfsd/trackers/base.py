"""What a tracker is, and how it names what a record holds."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

Record = Mapping[str, Any]
"""A line of metrics.jsonl."""
_OF_EVERY_RECORD = ("step", "epoch", "split", "time")


class Tracker(AbstractContextManager["Tracker"], Protocol):
    """Entered and used by one thread, which is neither the run's own nor waited for."""

    def show(self, record: Record) -> None:
        """The next record of the run. The first after entering is the run's first, also in a run that is resumed."""


def named_values(record: Record) -> dict[str, float]:
    """As a search names them: `train/loss`, `valid/deepest_top1`."""
    return {f"{record['split']}/{name}": value for name, value in record.items() if name not in _OF_EVERY_RECORD}
