"""Named running means, and the file in which each record stands exactly once."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmfsd.errors import RunFailedError
from fmfsd.system.atomic_files import flush_to_disk, write_whole


class RunningMeans:
    """Means of named values since the last `take`."""

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        self._sums, self._count = dict(sums or {}), count

    def add(self, **values: float) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def peek(self) -> dict[str, float]:
        return {name: total / self._count for name, total in self._sums.items()}

    def take(self) -> dict[str, float]:
        means = self.peek()
        self._sums, self._count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """As `RunningMeans(**state)` takes it; floats survive JSON exactly."""
        return {"sums": self._sums, "count": self._count}


class MetricsLog:
    """`metrics.jsonl`, one JSON object a line; `path` is None on every worker but rank 0, which alone writes.

    `started` is the time of the run's first start, in seconds since 1970; records carry the seconds since then. The
    file stays open: what a worker writes that has outlived its attempt goes into the file that its successor replaced.
    """

    def __init__(self, path: Path | None, started: float) -> None:
        self._path, self._started, self.records = path, started, 0
        self.show: Callable[[Mapping[str, Any]], None] = _nobody
        """Called with each record of the file: with those that are kept, and then with each that is added."""
        self._descriptor: int | None = None

    def keep(self, records: int) -> None:
        """Forget all but the first `records` records: those after the checkpoint that a run goes on from."""
        self.records = records
        if self._path is None:
            return
        lines = self._path.read_bytes().splitlines(keepends=True)[:records] if self._path.exists() else []
        with _reported(self._path):
            write_whole(self._path, b"".join(lines))
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        for line in lines:
            self.show(json.loads(line))

    def write(self, *, step: int, epoch: int, split: str, **values: float) -> None:
        """Add a record, which survives a power loss. RunFailedError if it can't be written."""
        self.records += 1
        if self._path is None or self._descriptor is None:
            return
        record = {"step": step, "epoch": epoch, "split": split, "time": round(time.time() - self._started, 3), **values}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with _reported(self._path):
            while line:
                line = line[os.write(self._descriptor, line) :]
            flush_to_disk(self._descriptor)
        self.show(record)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _nobody(record: Mapping[str, Any]) -> None:
    pass


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Without its records a run is worth nothing, so it ends when they can't be kept."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"{path} can't be written: {error}") from error


def last_records(path: Path) -> dict[str, dict[str, float]]:
    """The newest record of each split, without the names that every record has."""
    last: dict[str, dict[str, float]] = {}
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        split = record.pop("split")
        last[split] = {name: value for name, value in record.items() if name not in ("step", "epoch", "time")}
    return last
