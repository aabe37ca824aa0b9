"""`fmfsd-launch status`: one screen for a run or a search, one line each for several."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.config.plain_text import natural_sort_key, to_single_line
from launcher.run_dir.activity import format_age
from launcher.run_dir.status import RunStatus
from launcher.run_dir.sweep_dir import SweepDir, is_sweep
from launcher.tune.status import SweepStatus

LAST_ATTEMPTS = 5
WORKERS_SHOWN = 8
"""Limit of workers shown: those with the oldest heartbeats."""


def render_status(folder: Path, *, as_json: bool) -> str:
    """Render the status of the run or search `folder`, or of those inside it. CheckError if there are none."""
    if (folder / "config.yaml").exists():
        status = _read_status(folder)
        return json.dumps(status.to_dict()) if as_json else "\n".join(_screen(status))
    statuses = [_read_status(path.parent) for path in sorted(folder.glob("*/config.yaml"), key=natural_sort_key)]
    if not statuses:
        raise CheckError([Problem(str(folder), "neither a run directory nor a folder of runs: expected a config.yaml")])
    if as_json:
        return json.dumps([status.to_dict() for status in statuses])
    width = max(len(status.path.name) for status in statuses)
    return "\n".join(f"{status.path.name:<{width}}  {status.summary}" for status in statuses)


def _read_status(folder: Path) -> RunStatus | SweepStatus:
    return SweepStatus.read(SweepDir(folder)) if is_sweep(folder) else RunStatus.read(RunDir(folder))


def _screen(status: RunStatus | SweepStatus) -> Iterator[str]:
    for name, lines in (_rows(status) if isinstance(status, RunStatus) else status.rows()).items():
        for number, line in enumerate(lines):
            yield f"{'' if number else name:<12}{line}".rstrip()


def _rows(status: RunStatus) -> dict[str, list[str]]:
    return {
        "run": [str(status.path)],
        "state": [status.summary],
        "run by": [status.who],
        "jobs": status.jobs,
        "attempts": [_attempt(each) for each in status.attempts[-LAST_ATTEMPTS:]],
        "workers": list(_workers(status.workers)) if status.has_workers else [],
        "checkpoint": _checkpoint(status),
        "evaluated": [_evaluation(split, record) for split, record in status.evaluations.items()],
        "to resume": [f"fmfsd-launch resume {status.path}"] if status.is_resumable else [],
    }


def _attempt(attempt: dict[str, Any]) -> str:
    took = f" after {format_age(attempt['ended'] - attempt['started'])}" if attempt["ended"] else ""
    workers = f"{attempt['workers']} worker{'' if attempt['workers'] == 1 else 's'}"
    cause = f": {to_single_line(attempt['cause'])}" if attempt["cause"] else ""
    return f"{attempt['attempt']}: {attempt['state']}{took}, {workers}{cause}"


def _workers(workers: list[dict[str, Any]]) -> Iterator[str]:
    silent = sorted(workers, key=lambda worker: -worker["heartbeat_age_s"])[:WORKERS_SHOWN]
    for worker in sorted(silent, key=workers.index):
        where = f"rank {worker['rank']} (pid {worker.get('pid')} on {worker.get('host')})"
        age = format_age(worker["heartbeat_age_s"])
        yield f"{where}: {worker['state']}, step {worker['step']}, heartbeat {age} ago"
    if more := len(workers) - len(silent):
        yield f"and {more} more, with newer heartbeats"


def _checkpoint(status: RunStatus) -> list[str]:
    if status.checkpoint_step is None:
        return ["none yet"]
    return [f"after step {status.checkpoint_step}, {format_age(status.checkpoint_age_s or 0.0)} old"]


def _evaluation(split: str, record: dict[str, Any]) -> str:
    tops = {name.removesuffix("_top1"): value for name, value in record.items() if name.endswith("_top1")}
    heads = ", ".join(f"{name} {value:.1%}" for name, value in tops.items())
    return f"{split} after epoch {record.get('epoch')}: {heads}"
