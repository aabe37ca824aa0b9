"""Status of a run as a value, read from its folder and, for batch jobs, from Slurm."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import list_positions
from fmfsd.system.atomic_files import read_json
from launcher.config.plain_text import to_single_line
from launcher.run_dir.activity import RunActivity, seconds_since_write
from launcher.run_dir.batch_jobs import query_job_states
from launcher.transport.slurm_job_state import JobState

TAIL_BYTES = 1 << 20
"""Bytes at the end of the metrics file in which the last evaluations are searched."""
_STATES = {"train": "training", "evaluate": "evaluating", "save": "saving", "finished": "ending", "stopped": "ending"}
"""Run state by the state that rank 0 reports; any other, or none, means that the run is starting."""


@dataclass(frozen=True)
class RunStatus:
    """Status of a run.

    `state`: queued, starting, training, evaluating, saving, stopping or ending; finished, stopped, failed or
    interrupted; lost: its launch ended without an outcome; new: never started. `why`: details of the state. `who`: the
    owner. Ages are in seconds. `evaluations`: the last record of each split.
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
        """Return whether workers are running, or were when the run was lost."""
        return self.state in (*_STATES.values(), "starting", "stopping", "lost")

    @classmethod
    def read(cls, run: RunDir) -> "RunStatus":
        """Read the status of a run."""
        work, (jobs, trouble), attempts = RunActivity.read(run), query_job_states(run), _attempts(run)
        workers = sorted(_workers(run), key=lambda worker: int(worker["rank"]))
        state, why = _state(run, work, jobs, attempts, workers)
        (step, checkpoint_age_s), outcome = _checkpoint(run), _read_json_or_empty(run.outcome)
        return cls(
            path=run.path,
            state=state,
            why=why,
            who=work.owner_description,
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
    def summary(self) -> str:
        """Return one line: `training: step 5 of 20, epoch 1 of 2, 400 images/s`."""
        parts = list(filter(None, (_render_progress(self.progress), to_single_line(self.why))))
        return f"{self.state}: {'; '.join(parts)}" if parts else self.state

    def to_dict(self) -> dict[str, Any]:
        """Return the status as a dict for JSON."""
        content = asdict(self)
        return {"run": str(content.pop("path")), **content}


def _render_progress(progress: dict[str, int | float]) -> str:
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
    run: RunDir, work: RunActivity, jobs: list[JobState], attempts: list[dict[str, Any]], workers: list[dict[str, Any]]
) -> tuple[str, str]:
    """Return the state and its details."""
    if work.is_under_way:
        return _active_state(run, attempts, workers)
    waiting = [job for job in jobs if job.is_waiting]
    submitted = [job for job in jobs if not job.is_over and not work.has_run_since(run.jobs)]
    if waiting or submitted:
        return ("queued" if waiting else "starting"), str((waiting or submitted)[-1])
    if outcome := _read_json_or_empty(run.outcome):
        advice = f"; likely to help: {outcome['advice']}" if outcome.get("advice") else ""
        return str(outcome.get("state")), f"{outcome.get('cause') or ''}{advice}"
    if work.owner is None and not jobs:
        return "new", "not started yet"
    return "lost", "its launch ended without an outcome"


def _active_state(run: RunDir, attempts: list[dict[str, Any]], workers: list[dict[str, Any]]) -> tuple[str, str]:
    if run.stop_request.exists():
        return "stopping", ""
    if attempts and attempts[-1]["state"] == "failed":
        return "starting", f"again, after a failure: {attempts[-1]['cause']}"
    return _STATES.get(str(workers[0]["state"]), "starting") if workers else "starting", ""


def _progress(worker: dict[str, Any]) -> dict[str, int | float]:
    """Return what rank 0 reports: step and epoch with their totals, and images per second."""
    values: dict[str, int | float] = {
        name: worker[name] for name in ("step", "total_steps", "images_per_s") if name in worker
    }
    if per_epoch := worker.get("steps_per_epoch"):
        values["epoch"] = max(worker["step"] - 1, 0) // per_epoch + 1
        values["epochs"] = -(-worker["total_steps"] // per_epoch)
    return values


def _workers(run: RunDir) -> Iterator[dict[str, Any]]:
    """Yield the last report of each worker of the last attempt, with its age."""
    for path in run.progress.glob("rank-*.json"):
        report = _read_json_or_empty(path)
        if report.get("attempt") == run.last_attempt() and {"rank", "state", "step"} <= report.keys():
            yield {**report, "heartbeat_age_s": seconds_since_write(path)}


def _attempts(run: RunDir) -> list[dict[str, Any]]:
    """Return all attempts, oldest first."""
    names = ("attempt", "state", "cause", "workers", "started", "ended")
    attempts = (_read_json_or_empty(run.attempt(number)) for number in range(1, run.last_attempt() + 1))
    return [{name: attempt.get(name) for name in names} for attempt in attempts if attempt]


def _checkpoint(run: RunDir) -> tuple[int | None, float | None]:
    """Return the step and the age of the newest checkpoint."""
    positions = list_positions(run.checkpoints)
    return (
        (positions[0].step, seconds_since_write(run.checkpoints / positions[0].folder_name))
        if positions
        else (None, None)
    )


def _evaluations(metrics: Path) -> dict[str, dict[str, Any]]:
    """Return the last record of each split except train."""
    records = {}
    with suppress(OSError), metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        for line in file:
            with suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                records[record["split"]] = record
    return {split: record for split, record in records.items() if split != "train"}


def _read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return a JSON file's content; empty if it does not exist or is not valid JSON, as after a full disk."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
