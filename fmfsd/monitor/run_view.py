"""A run at one moment."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.run.metrics import last_records
from fmfsd.run.run_dir import RunDir
from fmfsd.run.slow_ranks import SLOW, factors
from fmfsd.system.atomic_files import read_json

SILENT_S = 15.0
"""A worker writes twice a second; clocks of hosts may differ by a little."""
ENDED = ("finished", "stopped")


@dataclass(frozen=True)
class Worker:
    """Of the newest attempt. `heartbeat_age_s` is by this host's clock; `own_time` is the time that it works, without
    waiting, as a multiple of the workers' median, and SLOW or more makes a straggler; None where it is not known."""

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
        return self.own_time is not None and self.own_time >= SLOW

    @property
    def is_silent(self) -> bool:
        return self.state not in ENDED and self.heartbeat_age_s > SILENT_S


@dataclass(frozen=True)
class RunView:
    """`state` is running, silent (its workers were, for SILENT_S), finished, stopped, failed or not started."""

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

    def as_json(self) -> dict[str, Any]:
        workers = [{**asdict(worker), "straggler": worker.is_straggler} for worker in self.workers]
        return {"kind": "run", **asdict(self), "workers": workers}


def run_view(path: Path) -> RunView:
    """Files that are missing or half written count as not there."""
    run = RunDir(path.absolute())
    shown = list(_progress(run))
    attempt = max((int(each.get("attempt", 0)) for each in shown), default=run.last_attempt())
    newest = [each for each in shown if each.get("attempt") == attempt]
    workers = tuple(_worker(each, _own_times(newest)) for each in newest)
    first = newest[0] if newest else {}
    outcome, metrics = read_or_empty(run.outcome), _records(run)
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
    """Of a run that goes on again the workers' word counts, not what became of it before."""
    alive = [worker for worker in workers if worker.state not in ENDED and not worker.is_silent]
    if alive:
        return "running"
    if outcome.get("state"):
        return str(outcome["state"])
    return "silent" if workers else "not started"


def _progress(run: RunDir) -> Iterator[dict[str, Any]]:
    """By rank."""
    found = [content for path in run.progress.glob("rank-*.json") if "rank" in (content := read_or_empty(path))]
    yield from sorted(found, key=lambda each: int(each["rank"]))


def _own_times(shown: list[dict[str, Any]]) -> dict[int, float]:
    return factors({each["rank"]: each["busy_s"] for each in shown if each.get("busy_s")})


def _worker(shown: dict[str, Any], own_times: dict[int, float]) -> Worker:
    rank = int(shown["rank"])
    return Worker(
        rank=rank,
        host=str(shown.get("host", "")),
        state=str(shown.get("state", "")),
        step=int(shown.get("step", 0)),
        images_per_s=shown.get("images_per_s"),
        data_wait=shown.get("data_wait"),
        peak_memory_bytes=int(shown.get("peak_memory_bytes", 0)),
        heartbeat_age_s=round(max(0.0, time.time() - float(shown.get("time", 0.0))), 1),
        own_time=own_times.get(rank),
        warnings=tuple(shown.get("warnings", ())),
    )


def _losses(shown: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in shown.items() if name.startswith("loss")}


def read_or_empty(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _records(run: RunDir) -> dict[str, dict[str, float]]:
    """The newest of each split."""
    try:
        return last_records(run.metrics)
    except (OSError, json.JSONDecodeError):
        return {}
