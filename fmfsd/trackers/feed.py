"""Threads that pass records on to trackers: one for each, so that none waits for another, and the run for none."""

import logging
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from fmfsd.trackers.base import Record, Tracker

CLOSING_S = 10.0
"""At a run's end, after its outcome is written: so long trackers may take for what they have not passed on yet."""

Warn = Callable[[str], None]
log = logging.getLogger(__name__)


class Feed:
    """One tracker and its thread, which begins with the first record. What goes wrong there becomes a warning."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], warn: Warn) -> None:
        self._name, self._open, self._warn = name, open_tracker, warn
        self._records: SimpleQueue[Record | None] = SimpleQueue()
        self._thread = Thread(target=self._pass_on, name=f"tracker {name}", daemon=True)

    def show(self, record: Record) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._records.put(record)

    def end(self) -> None:
        """Nothing more will come."""
        self._records.put(None)

    def wait(self, until: float) -> None:
        """Until it has passed everything on, or that moment of the monotonic clock; then it is left."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._warn(
                f"tracker {self._name}: not done {CLOSING_S:g} s after the run's end, so some records may be missing"
            )

    def _pass_on(self) -> None:
        try:
            with self._open() as tracker:
                while (record := self._records.get()) is not None:
                    tracker.show(record)
        except Exception as error:
            log.warning("tracker %s", self._name, exc_info=True)
            self._warn(f"tracker {self._name} shows no more: {error}")


class Trackers:
    """Those of one worker, as a context: at a run's end they are waited for, at most CLOSING_S; at a failure not."""

    def __init__(self, feeds: Sequence[Feed] = ()) -> None:
        self._feeds = feeds

    def show(self, record: Record) -> None:
        for feed in self._feeds:
            feed.show(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + CLOSING_S
        for feed in self._feeds:
            feed.end()
        if error is None:
            for feed in self._feeds:
                feed.wait(until)
