"""Threads that pass records to trackers, one per tracker, so that trackers delay neither each other nor the run."""

import logging
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from fmfsd.trackers.metric_tags import Record
from fmfsd.trackers.tracker import Tracker

CLOSE_TIMEOUT_S = 10.0
"""Seconds that trackers get at the end of a run, after its outcome is written, to pass on their remaining records."""

Warn = Callable[[str], None]
log = logging.getLogger(__name__)


class TrackerThread:
    """A tracker and its thread, which starts with the first record. Errors of the tracker become warnings."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], warn: Warn) -> None:
        self._name, self._open, self._warn = name, open_tracker, warn
        self._records: SimpleQueue[Record | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=f"tracker {name}", daemon=True)

    def log(self, record: Record) -> None:
        """Queue a record for the tracker."""
        if self._thread.ident is None:
            self._thread.start()
        self._records.put(record)

    def close(self) -> None:
        """Make the thread end after the queued records."""
        self._records.put(None)

    def wait(self, until: float) -> None:
        """Wait until all records are passed on, at most until the monotonic time `until`."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            late = f"not finished {CLOSE_TIMEOUT_S:g} s after the run's end"
            self._warn(f"tracker {self._name}: {late}, so records may be missing")

    def _run(self) -> None:
        try:
            with self._open() as tracker:
                while (record := self._records.get()) is not None:
                    tracker.log(record)
        except Exception as error:
            log.warning("tracker %s", self._name, exc_info=True)
            self._warn(f"tracker {self._name} failed and gets no more records: {error}")


class Trackers:
    """All trackers of a worker, as a context: its exit waits for them, at most CLOSE_TIMEOUT_S; not after an error."""

    def __init__(self, feeds: Sequence[TrackerThread] = ()) -> None:
        self._feeds = feeds

    def log(self, record: Record) -> None:
        for feed in self._feeds:
            feed.log(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + CLOSE_TIMEOUT_S
        for feed in self._feeds:
            feed.close()
        if error is None:
            for feed in self._feeds:
                feed.wait(until)
