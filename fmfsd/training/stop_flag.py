"""Stop requests by signal or file. All workers agree on them between steps."""

import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from fmfsd.run.run_dir import STOP_NOW

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.5
"""Interval at which rank 0 checks for the stop request file: a check on a network file system takes time."""


class StopFlag:
    """`requested` is True once SIGTERM or SIGINT has arrived or the file `request` exists. Handlers only set a flag.

    Only rank 0 gets a `request` to check for; the step's all-reduce passes it on to the other workers.
    """

    def __init__(self, request: Path | None) -> None:
        self._request, self._signalled, self._next_poll = request, False, 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    @property
    def requested(self) -> bool:
        if not self._signalled and self._request is not None and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + POLL_S
            self._signalled = _requests_save(self._request)
        return self._signalled

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._set) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _requests_save(request: Path) -> bool:
    """Return False for a request to end at once: the coordinator handles it and ends this worker."""
    try:
        return request.read_text() != STOP_NOW
    except OSError:
        return False
