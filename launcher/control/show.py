"""`fmfsd-launch status`: one screen for a run, a line for each of several."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmfsd.errors import CheckError, Problem
from fmfsd.rundir import RunDir
from launcher.control.status import Status
from launcher.control.work import age
from launcher.log_follower import harmless, in_order

LAST_ATTEMPTS = 5
WORKERS_SHOWN = 8
"""Of many, those that were silent for longest."""


def shown(folder: Path, *, as_json: bool) -> str:
    """Of the run in `folder`, or of those that are in it. CheckError if there are none."""
    run = RunDir(folder)
    if run.config.exists():
        status = Status.of(run)
        return _json(status) if as_json else "\n".join(_screen(status))
    found = [Status.of(RunDir(path.parent)) for path in sorted(folder.glob("*/config.yaml"), key=in_order)]
    if not found:
        raise CheckError([Problem(str(folder), "no run directory, and there is none in it")])
    if as_json:
        return f"[{', '.join(map(_json, found))}]"
    width = max(len(status.run.name) for status in found)
    return "\n".join(f"{status.run.name:<{width}}  {_line(status)}" for status in found)


def _json(status: Status) -> str:
    return json.dumps({**asdict(status), "run": str(status.run)})


def _line(status: Status) -> str:
    """`training: step 5 of 20, epoch 1 of 2, 400 images/s`."""
    parts = list(filter(None, (_done(status.progress), _in_a_line(status.why))))
    return f"{status.state}: {'; '.join(parts)}" if parts else status.state


def _done(progress: dict[str, Any]) -> str:
    parts = []
    if "step" in progress:
        of = f" of {progress['total_steps']}" if "total_steps" in progress else ""
        parts.append(f"step {progress['step']}{of}")
    if "epoch" in progress:
        parts.append(f"epoch {progress['epoch']} of {progress['epochs']}")
    if progress.get("images_per_s"):
        parts.append(f"{progress['images_per_s']:.0f} images/s")
    return ", ".join(parts)


def _screen(status: Status) -> Iterator[str]:
    rows = {
        "run": [str(status.run)],
        "state": [_line(status)],
        "run by": [status.who],
        "jobs": status.jobs,
        "attempts": [_attempt(each) for each in status.attempts[-LAST_ATTEMPTS:]],
        "workers": list(_workers(status.workers)) if status.has_workers else [],
        "checkpoint": _checkpoint(status),
        "evaluated": [_evaluation(split, record) for split, record in status.evaluations.items()],
        "to go on": [f"fmfsd-launch resume {status.run}"] if status.is_resumable else [],
    }
    for name, lines in rows.items():
        for number, line in enumerate(lines):
            yield f"{'' if number else name:<12}{line}".rstrip()


def _attempt(attempt: dict[str, Any]) -> str:
    took = f" after {age(attempt['ended'] - attempt['started'])}" if attempt["ended"] else ""
    workers = f"{attempt['workers']} worker{'' if attempt['workers'] == 1 else 's'}"
    cause = f": {_in_a_line(attempt['cause'])}" if attempt["cause"] else ""
    return f"{attempt['attempt']}: {attempt['state']}{took}, {workers}{cause}"


def _workers(workers: list[dict[str, Any]]) -> Iterator[str]:
    silent = sorted(workers, key=lambda worker: -worker["heartbeat_age_s"])[:WORKERS_SHOWN]
    for worker in sorted(silent, key=workers.index):
        where = f"rank {worker['rank']} (pid {worker.get('pid')} on {worker.get('host')})"
        yield f"{where}: {worker['state']}, step {worker['step']}, heartbeat {age(worker['heartbeat_age_s'])} ago"
    if more := len(workers) - len(silent):
        yield f"and {more} more, heard of later than these"


def _in_a_line(text: str) -> str:
    return harmless(" / ".join(text.splitlines()))


def _checkpoint(status: Status) -> list[str]:
    if status.checkpoint_step is None:
        return ["none yet"]
    return [f"after step {status.checkpoint_step}, {age(status.checkpoint_age_s or 0.0)} old"]


def _evaluation(split: str, record: dict[str, Any]) -> str:
    tops = {name.removesuffix("_top1"): value for name, value in record.items() if name.endswith("_top1")}
    heads = ", ".join(f"{name} {value:.1%}" for name, value in tops.items())
    return f"{split} after epoch {record.get('epoch')}: {heads}"
