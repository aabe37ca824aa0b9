"""Current state of a run, read from its files."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.run.metrics import read_last_records
from fmfsd.run.run_dir import RunDir
from fmfsd.run.straggler_detection import SLOW_FACTOR, compute_slowdowns
from fmfsd.system.atomic_files import read_json

SILENT_S = 15.0
"""Heartbeat age from which a worker is silent. Workers write twice a second; clocks of hosts may differ a little."""
ENDED = ("finished", "stopped")


@dataclass(frozen=True)
class Worker:
    """A worker of the newest attempt.

    `heartbeat_age_s`: by this host's clock. `own_time`: its time in steps without waiting, divided by the median of all
    workers; a worker from SLOW upwards is a straggler. None if unknown.
    """

    rank: int
    host: str
    state: str
    step: int
    images_per_s: float | None
    data_wait: float | None
    peak_memory_bytes: int
    heartbeat_age_s: float
    own_time: float | None
    warnings: tuple[str, ...]

    @property
    def is_straggler(self) -> bool:
        return self.own_time is not None and self.own_time >= SLOW_FACTOR

    @property
    def is_silent(self) -> bool:
        return self.state not in ENDED and self.heartbeat_age_s > SILENT_S


@dataclass(frozen=True)
class RunView:
    """State of a run: running, silent (no heartbeat for SILENT_S), finished, stopped, failed or not started."""

    path: str
    state: str
    cause: str
    attempt: int
    step: int
    total_steps: int | None
    steps_per_epoch: int | None
    checkpoint_step: int | None
    losses: dict[str, float]
    metrics: dict[str, dict[str, float]]
    workers: tuple[Worker, ...]

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

    def to_dict(self) -> dict[str, Any]:
        workers = [{**asdict(worker), "straggler": worker.is_straggler} for worker in self.workers]
        return {"kind": "run", **asdict(self), "workers": workers}


def read_run_view(path: Path) -> RunView:
    """Read the view of the run in `path`. Missing or incomplete files count as absent."""
    run = RunDir(path.absolute())
    progress = list(_progress(run))
    attempt = max((int(each.get("attempt", 0)) for each in progress), default=run.last_attempt())
    current = [each for each in progress if each.get("attempt") == attempt]
    workers = tuple(_worker(each, _own_times(current)) for each in current)
    first = current[0] if current else {}
    outcome, metrics = read_json_or_empty(run.outcome), _records(run)
    return RunView(
        path=str(path),
        state=_state(outcome, workers),
        cause=str(outcome.get("cause") or ""),
        attempt=attempt,
        step=max((worker.step for worker in workers), default=int(outcome.get("step") or 0)),
        total_steps=first.get("total_steps"),
        steps_per_epoch=first.get("steps_per_epoch"),
        checkpoint_step=run.newest_step(),
        losses=_losses(first) or _losses(metrics.get("train", {})),
        metrics=metrics,
        workers=workers,
    )


def _state(outcome: dict[str, Any], workers: tuple[Worker, ...]) -> str:
    """Return the state. Live workers take precedence: outcome.json may be of an earlier attempt of a resumed run."""
    alive = [worker for worker in workers if worker.state not in ENDED and not worker.is_silent]
    if alive:
        return "running"
    if outcome.get("state"):
        return str(outcome["state"])
    return "silent" if workers else "not started"


def _progress(run: RunDir) -> Iterator[dict[str, Any]]:
    """Yield the progress files of the workers by rank."""
    contents = [content for path in run.progress.glob("rank-*.json") if "rank" in (content := read_json_or_empty(path))]
    yield from sorted(contents, key=lambda each: int(each["rank"]))


def _own_times(progress: list[dict[str, Any]]) -> dict[int, float]:
    return compute_slowdowns({each["rank"]: each["busy_s"] for each in progress if each.get("busy_s")})


def _worker(progress: dict[str, Any], own_times: dict[int, float]) -> Worker:
    rank = int(progress["rank"])
    return Worker(
        rank=rank,
        host=str(progress.get("host", "")),
        state=str(progress.get("state", "")),
        step=int(progress.get("step", 0)),
        images_per_s=progress.get("images_per_s"),
        data_wait=progress.get("data_wait"),
        peak_memory_bytes=int(progress.get("peak_memory_bytes", 0)),
        heartbeat_age_s=round(max(0.0, time.time() - float(progress.get("time", 0.0))), 1),
        own_time=own_times.get(rank),
        warnings=tuple(progress.get("warnings", ())),
    )


def _losses(progress: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in progress.items() if name.startswith("loss")}


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file is missing or incomplete."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _records(run: RunDir) -> dict[str, dict[str, float]]:
    """Return the latest record of each split."""
    try:
        return read_last_records(run.metrics)
    except (OSError, json.JSONDecodeError):
        return {}
