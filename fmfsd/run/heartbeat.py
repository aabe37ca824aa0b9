"""Heartbeats: a small file per worker with its state and signs of life, for the hang detector and the live view."""

import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fmfsd.system.atomic_files import write_json

HEARTBEAT_INTERVAL_S = 0.5


class HeartbeatFile:
    """The heartbeat file of a worker, replaced at every change of `state`.

    Inside the context, a separate thread writes it every HEARTBEAT_INTERVAL_S seconds too. Its content: `constants`;
    `beat`, the number of periodic writes, which a stopped process does not increase; `moves`, a counter of the main
    thread's activity, which a hanging worker does not increase; `warnings` for the user about problems that did not end
    the run.
    """

    def __init__(self, path: Path, **constants: Any) -> None:
        self._path = path
        self.constants = {"host": socket.gethostname(), "pid": os.getpid(), **constants}
        self.count_collectives: Callable[[], tuple[int, bool]] = lambda: (0, False)
        """Returns the number of collective calls so far, and whether one of them is waiting for other workers."""
        self.warnings: list[str] = []
        self._status: dict[str, Any] = {"state": "starting", "step": 0}
        self._updates = self._beat = 0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._write_periodically, name="heartbeat", daemon=True)

    def update(self, state: str, *, step: int, **values: Any) -> None:
        """Set the state, the step and other values of the file; write it at once if the state has changed."""
        changed = state != self._status["state"]
        self._status = {"state": state, "step": step, **values}
        self._updates += 1
        if changed:
            self._write()

    def warn(self, text: str) -> None:
        """Add a warning for the user and write the file."""
        self.warnings.append(text)
        self._write()

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._write()

    def _write_periodically(self) -> None:
        while not self._ended.wait(HEARTBEAT_INTERVAL_S):
            self._beat += 1
            self._write()

    def _write(self) -> None:
        calls, waiting = self.count_collectives()
        content = {
            **self.constants,
            **self._status,
            "time": time.time(),
            "beat": self._beat,
            "moves": self._updates + calls,
            "waiting": waiting,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "warnings": self.warnings,
        }
        with self._lock, suppress(OSError):  # a failed heartbeat write must not end the run
            write_json(self._path, content, durable=False)
