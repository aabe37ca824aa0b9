"""The interface of an experiment tracker."""

from contextlib import AbstractContextManager
from typing import Protocol

from fmfsd.trackers.metric_tags import Record


class Tracker(AbstractContextManager["Tracker"], Protocol):
    """An experiment tracker. One background thread enters and uses it; the training does not wait for it."""

    def log(self, record: Record) -> None:
        """Log the next record. In a resumed run too, the first record after entering is the run's first."""
