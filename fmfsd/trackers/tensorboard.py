"""TensorBoard event file: rewritten at each start of a run, so that it has every record once."""

import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams

from fmfsd.trackers.metric_tags import Record, flatten_record

_NAME = "events.out.tfevents."
_METRICS = ("valid/deepest_top1", "test/deepest_top1")
"""Metrics in TensorBoard's HParams page."""


class EventFile:
    """A new event file in a folder. `hyperparameters` have dotted names; `started` is the run's Unix start time.

    TensorBoard reads event files in the order of their names, so this file's name sorts after the existing ones. It
    starts with a session start at step 0, which makes TensorBoard discard the older files' content. The previous file
    is not deleted, because a running TensorBoard reopens it.
    """

    def __init__(self, folder: Path, hyperparameters: Mapping[str, Any], started: float) -> None:
        self._folder, self._hyperparameters, self._started = folder, hyperparameters, started

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True, mode=0o700)
        older = sorted(self._folder.glob(f"{_NAME}*"))
        number = int(older[-1].name.removeprefix(_NAME)) + 1 if older else 1
        self._file = (self._folder / f"{_NAME}{number:010d}").open("xb", buffering=0)
        self._write(file_version="brain.Event:2")
        self._write(session_log=SessionLog(status=SessionLog.START))
        for summary in hparams(self._hparams(), dict.fromkeys(_METRICS)):
            self._write(summary=summary)
        for path in older[:-1]:
            path.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def log(self, record: Record) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in flatten_record(record).items()]
        self._write(record["time"], step=record["step"], summary=Summary(value=values))

    def _hparams(self) -> dict[str, bool | float | str]:
        return {
            name: value if isinstance(value, bool | float | int | str) else str(value)
            for name, value in self._hyperparameters.items()
            if value is not None
        }

    def _write(self, time_s: float = 0.0, **content: Any) -> None:
        """Write an event as a TFRecord: length, its checksum, content, its checksum."""
        event = Event(wall_time=self._started + time_s, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        frame = length + _checksum(length) + event + _checksum(event)
        while frame:
            frame = frame[self._file.write(frame) :]


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(content))
