"""What a worker is doing and that it lives, in a small file that is replaced in place; read by whoever watches."""

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

EVERY_S = 0.5


class ProgressFile:
    """Writes `path` at every change of `state` and, as a context, every EVERY_S seconds from a thread of its own.

    `constants` are in every writing. `beat` counts the thread's writings: a process that is stopped has no pulse.
    `moves` counts what the main thread does: a worker that hangs has a pulse and does not move. `warnings` are for the
    user: what went wrong and did not end the run.
    """

    def __init__(self, path: Path, **constants: Any) -> None:
        self._path = path
        self.constants = {"host": socket.gethostname(), "pid": os.getpid(), **constants}
        self.calls: Callable[[], tuple[int, bool]] = lambda: (0, False)
        """How many were made to other workers, and whether one is being waited for."""
        self.warnings: list[str] = []
        self._shown: dict[str, Any] = {"state": "starting", "step": 0}
        self._shows = self._beat = 0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._pulse, name="heartbeat", daemon=True)

    def show(self, state: str, *, step: int, **values: Any) -> None:
        changed = state != self._shown["state"]
        self._shown = {"state": state, "step": step, **values}
        self._shows += 1
        if changed:
            self._write()

    def warn(self, text: str) -> None:
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

    def _pulse(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._beat += 1
            self._write()

    def _write(self) -> None:
        calls, waiting = self.calls()
        content = {
            **self.constants,
            **self._shown,
            "time": time.time(),
            "beat": self._beat,
            "moves": self._shows + calls,
            "waiting": waiting,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "warnings": self.warnings,
        }
        with self._lock, suppress(OSError):  # a watcher that sees nothing new is no reason to end a run
            write_json(self._path, content, durable=False)
