"""Readers of what trackers have written: TensorBoard's event files and W&B's offline runs."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from fmfsd.run.run_dir import RunDir
from fmfsd.trackers.metric_tags import flatten_record

MetricPoints = dict[str, list[tuple[int, float]]]
"""(step, value) pairs by metric name."""
_HEADER, _BLOCK, _CHUNK = 7, 32768, struct.Struct("<IHB")


def read_metrics(run: RunDir) -> MetricPoints:
    """Return the metrics in metrics.jsonl."""
    metrics: MetricPoints = {}
    for line in run.metrics.read_text().splitlines():
        record = json.loads(line)
        for name, value in flatten_record(record).items():
            metrics.setdefault(name, []).append((record["step"], value))
    return metrics


def to_float32(exact: MetricPoints) -> MetricPoints:
    """Round the values to float32, which TensorBoard stores."""
    return {name: [(step, float(np.float32(value))) for step, value in each] for name, each in exact.items()}


def read_tensorboard(run: RunDir) -> MetricPoints:
    accumulator = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: [(each.step, each.value) for each in accumulator.Scalars(name)] for name in names}


def read_wandb(run: RunDir) -> MetricPoints:
    """Return the metrics in W&B's newest offline run."""
    metrics: MetricPoints = {}
    path = sorted(run.wandb_id.parent.glob("offline-run-*/*.wandb"))[-1]
    for content in _log_records(path.read_bytes()):
        record = Record.FromString(content)
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name in (name for name in row if "/" in name):
            metrics.setdefault(name, []).append((row["step"], row[name]))
    return metrics


def _log_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log: chunks that do not cross blocks of 32 KiB; type 1 or 4 ends a record."""
    position, record = _HEADER, b""
    while position + _CHUNK.size <= len(content):
        if _BLOCK - position % _BLOCK < _CHUNK.size:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = _CHUNK.unpack_from(content, position)
        position += _CHUNK.size + length
        record += content[position - length : position]
        if kind in (1, 4):
            yield record
            record = b""


def read_hyperparameters(run: RunDir) -> dict[str, Any]:
    """Return the hyperparameters that TensorBoard shows."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    accumulator = EventAccumulator(str(run.tensorboard))
    accumulator.Reload()
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
