"""Metrics: running means of named values, and metrics.jsonl, which has each record exactly once."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmfsd.errors import RunFailedError
from fmfsd.system.atomic_files import flush_to_disk, write_atomic


class RunningMeans:
    """Running means of named values since the last `pop`."""

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        self._sums, self._count = dict(sums or {}), count

    def add(self, **values: float) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def compute(self) -> dict[str, float]:
        """Return the means without a reset."""
        return {name: total / self._count for name, total in self._sums.items()}

    def pop(self) -> dict[str, float]:
        """Return the means and reset them."""
        means = self.compute()
        self._sums, self._count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Return the arguments that recreate this object, as JSON types; JSON preserves floats exactly."""
        return {"sums": self._sums, "count": self._count}


class MetricsLog:
    """Writer of `metrics.jsonl`, one JSON object per line. Only rank 0 writes; `path` is None on all other workers.

    `started` is the Unix time of the run's first start; records contain the seconds since then. The file stays open: a
    worker that outlives its attempt writes into the old file, which the next attempt has already replaced.
    """

    def __init__(self, path: Path | None, started: float) -> None:
        self._path, self._started, self.records = path, started, 0
        self.on_record: Callable[[Mapping[str, Any]], None] = _ignore
        """Called with each record of the file: on a resume with the existing records, then with each new record."""
        self._descriptor: int | None = None

    def truncate(self, records: int) -> None:
        """Open the file and drop all records after the first `records`, which are newer than the loaded checkpoint."""
        self.records = records
        if self._path is None:
            return
        lines = self._path.read_bytes().splitlines(keepends=True)[:records] if self._path.exists() else []
        with _fail_run_on_write_error(self._path):
            write_atomic(self._path, b"".join(lines))
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        for line in lines:
            self.on_record(json.loads(line))

    def write(self, *, step: int, epoch: int, split: str, **values: float) -> None:
        """Add a record durably (fsync). RunFailedError if it can't be written."""
        self.records += 1
        if self._path is None or self._descriptor is None:
            return
        record = {"step": step, "epoch": epoch, "split": split, "time": round(time.time() - self._started, 3), **values}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with _fail_run_on_write_error(self._path):
            while line:
                line = line[os.write(self._descriptor, line) :]
            flush_to_disk(self._descriptor)
        self.on_record(record)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _ignore(record: Mapping[str, Any]) -> None:
    pass


@contextmanager
def _fail_run_on_write_error(path: Path) -> Iterator[None]:
    """Turn OSError into RunFailedError: a run without its metrics is useless."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"{path} can't be written: {error}") from error


def read_last_records(path: Path) -> dict[str, dict[str, float]]:
    """Return the newest record of each split, without step, epoch and time."""
    last: dict[str, dict[str, float]] = {}
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        split = record.pop("split")
        last[split] = {name: value for name, value in record.items() if name not in ("step", "epoch", "time")}
    return last
