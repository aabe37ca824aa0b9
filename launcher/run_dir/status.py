"""How a run is doing, read from its folder and, of its batch jobs, from Slurm: a value that can be shown."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import positions_in
from fmfsd.system.atomic_files import read_json
from launcher.config.plain_text import in_a_line
from launcher.run_dir.activity import Work, age_of
from launcher.run_dir.batch_jobs import states_seen
from launcher.transport.slurm_commands import JobState

TAIL_BYTES = 1 << 20
"""Of the metrics, in which the last evaluations are looked for."""
_DOES = {"train": "training", "evaluate": "evaluating", "save": "saving", "finished": "ending", "stopped": "ending"}
"""By what rank 0 says; a run whose rank 0 says something else, or nothing, is starting."""


@dataclass(frozen=True)
class Status:
    """What is known of a run now.

    `state` is queued, starting, training, evaluating, saving, stopping or ending; finished, stopped, failed or
    interrupted; lost, if whoever ran it is gone without an outcome; new, if nobody has run it. `why` says more of that.
    Ages are in seconds. `evaluations` has the last record of each split.
    """

    path: Path
    state: str
    why: str
    who: str
    is_resumable: bool
    progress: dict[str, int | float]
    attempts: list[dict[str, Any]]
    checkpoint_step: int | None
    checkpoint_age_s: float | None
    evaluations: dict[str, dict[str, Any]]
    workers: list[dict[str, Any]]
    jobs: list[str]

    @property
    def has_workers(self) -> bool:
        """Whether some are at work, or were when it was lost."""
        return self.state in (*_DOES.values(), "starting", "stopping", "lost")

    @classmethod
    def of(cls, run: RunDir) -> "Status":
        work, (jobs, trouble), attempts = Work.on(run), states_seen(run), _attempts(run)
        workers = sorted(_workers(run), key=lambda worker: int(worker["rank"]))
        state, why = _state(run, work, jobs, attempts, workers)
        (step, checkpoint_age_s), outcome = _checkpoint(run), _read(run.outcome)
        return cls(
            path=run.path,
            state=state,
            why=why,
            who=work.who,
            is_resumable=state == "lost" or (not work.is_under_way and bool(outcome.get("resumable"))),
            progress=_progress(workers[0]) if workers and state != "queued" else {},
            attempts=attempts,
            checkpoint_step=step,
            checkpoint_age_s=checkpoint_age_s,
            evaluations=_evaluations(run.metrics),
            workers=workers,
            jobs=[*map(str, jobs), *map(str, trouble)],
        )

    @property
    def line(self) -> str:
        """`training: step 5 of 20, epoch 1 of 2, 400 images/s`."""
        parts = list(filter(None, (_done(self.progress), in_a_line(self.why))))
        return f"{self.state}: {'; '.join(parts)}" if parts else self.state

    def told(self) -> dict[str, Any]:
        """As JSON."""
        content = asdict(self)
        return {"run": str(content.pop("path")), **content}


def _done(progress: dict[str, int | float]) -> str:
    parts = []
    if "step" in progress:
        of = f" of {progress['total_steps']}" if "total_steps" in progress else ""
        parts.append(f"step {progress['step']}{of}")
    if "epoch" in progress:
        parts.append(f"epoch {progress['epoch']} of {progress['epochs']}")
    if progress.get("images_per_s"):
        parts.append(f"{progress['images_per_s']:.0f} images/s")
    return ", ".join(parts)


def _state(
    run: RunDir, work: Work, jobs: list[JobState], attempts: list[dict[str, Any]], workers: list[dict[str, Any]]
) -> tuple[str, str]:
    """And why."""
    if work.is_under_way:
        return _at_work(run, attempts, workers)
    waiting = [job for job in jobs if job.is_waiting]
    begun = [job for job in jobs if not job.is_over and not work.has_run_since(run.jobs)]
    if waiting or begun:
        return ("queued" if waiting else "starting"), str((waiting or begun)[-1])
    if outcome := _read(run.outcome):
        advice = f"; likely to help: {outcome['advice']}" if outcome.get("advice") else ""
        return str(outcome.get("state")), f"{outcome.get('cause') or ''}{advice}"
    if work.owner is None and not jobs:
        return "new", "nobody has run it yet"
    return "lost", "whoever ran it is gone without an outcome"


def _at_work(run: RunDir, attempts: list[dict[str, Any]], workers: list[dict[str, Any]]) -> tuple[str, str]:
    if run.stop_request.exists():
        return "stopping", ""
    if attempts and attempts[-1]["state"] == "failed":
        return "starting", f"again, after a failure: {attempts[-1]['cause']}"
    return _DOES.get(str(workers[0]["state"]), "starting") if workers else "starting", ""


def _progress(worker: dict[str, Any]) -> dict[str, int | float]:
    """As rank 0 tells it: step, epoch, how many there are, and images a second."""
    found: dict[str, int | float] = {
        name: worker[name] for name in ("step", "total_steps", "images_per_s") if name in worker
    }
    if per_epoch := worker.get("steps_per_epoch"):
        found["epoch"] = max(worker["step"] - 1, 0) // per_epoch + 1
        found["epochs"] = -(-worker["total_steps"] // per_epoch)
    return found


def _workers(run: RunDir) -> Iterator[dict[str, Any]]:
    """What each worker of the last attempt has last written, and how long ago."""
    for path in run.progress.glob("rank-*.json"):
        shown = _read(path)
        if shown.get("attempt") == run.last_attempt() and {"rank", "state", "step"} <= shown.keys():
            yield {**shown, "heartbeat_age_s": age_of(path)}


def _attempts(run: RunDir) -> list[dict[str, Any]]:
    """Oldest first."""
    names = ("attempt", "state", "cause", "workers", "started", "ended")
    found = (_read(run.attempt(number)) for number in range(1, run.last_attempt() + 1))
    return [{name: attempt.get(name) for name in names} for attempt in found if attempt]


def _checkpoint(run: RunDir) -> tuple[int | None, float | None]:
    """The newest one's step and age."""
    found = positions_in(run.checkpoints)
    return (found[0].step, age_of(run.checkpoints / found[0].folder_name)) if found else (None, None)


def _evaluations(metrics: Path) -> dict[str, dict[str, Any]]:
    """The last record of each split but train."""
    found = {}
    with suppress(OSError), metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        for line in file:
            with suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                found[record["split"]] = record
    return {split: record for split, record in found.items() if split != "train"}


def _read(path: Path) -> dict[str, Any]:
    """Empty if it is not there or no JSON, which it is not while a disk is full."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
