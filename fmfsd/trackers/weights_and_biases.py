"""W&B tracker in a separate process that can be killed, because W&B may wait long for an unreachable server."""

import json
import os
import secrets
import sys
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from types import TracebackType
from typing import Any, Self

from fmfsd.errors import FmfsdError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_atomic
from fmfsd.trackers.feed import CLOSE_TIMEOUT_S
from fmfsd.trackers.metric_tags import Record

CLOSE_MARGIN_S = 1.0
"""Seconds by which this tracker gives up before CLOSE_TIMEOUT_S is over."""


class WandbError(FmfsdError):
    """W&B did not take the records."""


class WandbRun:
    """Starts the W&B process, writes one line per record to it, and at the end waits for it or kills it."""

    def __init__(self, run: RunDir, config: dict[str, Any]) -> None:
        self._run, self._config = run, config

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "fmfsd.trackers.wandb_process", str(os.getpid())]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, start_new_session=True)
        folder = str(self._run.path)
        self._write(
            {
                "id": _load_or_create_id(self._run.wandb_id),
                "name": self._run.path.name,
                "dir": folder,
                "config": self._config,
            }
        )
        return self

    def log(self, record: Record) -> None:
        self._write(record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            output, _ = self._process.communicate(timeout=CLOSE_TIMEOUT_S - CLOSE_MARGIN_S)
        except TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise WandbError(
                f"W&B has not taken all records {CLOSE_TIMEOUT_S - CLOSE_MARGIN_S:g} s after the run's end"
            ) from None
        if self._process.returncode:
            raise WandbError(output.strip() or f"W&B's process ended with exit code {self._process.returncode}")

    def _write(self, content: Record) -> None:
        """Write a line to the process. `__exit__` reports the error of a process that has ended."""
        try:
            print(json.dumps(content), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WandbError("W&B's process does not accept records any more") from None


def _load_or_create_id(path: Path) -> str:
    """Return the W&B id, which is the same for all starts of a run."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_atomic(path, secrets.token_hex(8).encode())
    return path.read_text()
