"""What a worker is doing, in a small file that is replaced in place; read by anyone who wants to watch."""

import os
import resource
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fmfsd.files import write_json

EVERY_S = 0.5


class ProgressFile:
    """Writes `path` at most every EVERY_S seconds, and at every change of `state`; `constants` are in every writing."""

    def __init__(self, path: Path, **constants: Any) -> None:
        self._path = path
        self.constants = {"host": socket.gethostname(), "pid": os.getpid(), **constants}
        self._state, self._next = "", 0.0

    def show(self, state: str, *, step: int, **values: Any) -> None:
        now = time.monotonic()
        if state == self._state and now < self._next:
            return
        self._state, self._next = state, now + EVERY_S
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        content = {
            **self.constants,
            "state": state,
            "step": step,
            "time": time.time(),
            "peak_memory_bytes": memory,
            **values,
        }
        with suppress(OSError):  # a watcher that sees nothing new is no reason to end a run
            write_json(self._path, content, durable=False)
