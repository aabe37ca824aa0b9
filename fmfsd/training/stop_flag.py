"""A signal or a file asks a worker to stop; all workers agree on it between steps."""

import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from fmfsd.run.run_dir import NOW

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 0.5
"""How often rank 0 looks for the stop request; a look at a network file system is not free."""


class StopFlag:
    """`requested` once SIGTERM or SIGINT has arrived, or `request` exists. A handler only sets a flag.

    Rank 0 alone gets a `request` to look for: the other workers learn of it in the step's reduction.
    """

    def __init__(self, request: Path | None) -> None:
        self._request, self._signalled, self._next_look = request, False, 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    @property
    def requested(self) -> bool:
        if not self._signalled and self._request is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_S
            self._signalled = _asks_to_save(self._request)
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


def _asks_to_save(request: Path) -> bool:
    """One to end at once is for the coordinator, which ends us."""
    try:
        return request.read_text() != NOW
    except OSError:
        return False
