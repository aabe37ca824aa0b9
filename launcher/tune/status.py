"""The status of a sweep, read from its folder."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.system.atomic_files import read_json
from launcher.config.launch_config import TuneOptions
from launcher.config.plain_text import to_single_line
from launcher.run_dir.activity import RunActivity
from launcher.run_dir.status import RunStatus
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.display.eta import END_STATES, count_trials, estimate_seconds_left
from launcher.tune.display.formatting import format_best, format_counts, format_time_left
from launcher.tune.records.history import History
from launcher.tune.records.ledger import read_facts


@dataclass(frozen=True)
class SweepStatus:
    """The current status of a sweep.

    `state`: searching or stopping; finished, stopped, failed or interrupted; lost, if the coordinator is gone without
    an outcome; new, if the sweep was never started. `who`: the process that runs or ran the sweep. `trials`: their
    number by state. `running`: a status line by trial. `failed`: the cause by trial.
    """

    path: Path
    state: str
    why: str
    who: str
    is_resumable: bool
    trials: dict[str, int]
    seconds_left: float | None
    best: str
    front: list[str]
    running: dict[str, str]
    failed: dict[str, str]

    @classmethod
    def read(cls, sweep: SweepDir) -> "SweepStatus":
        """Read the status. Raise CheckError if the ledger is damaged."""
        history, work = _history(sweep), RunActivity.read(sweep.coordinator_dir)
        (state, why), running = _state(sweep, work), dict(_running(sweep, history))
        ranked = history.rank_trials()
        done = [_share_done(status) for status in running.values()]
        at_a_time = history.options.concurrent or len(running)
        return cls(
            path=sweep.path,
            state=state,
            why=why,
            who=work.owner_description,
            is_resumable=not work.is_under_way and state != "finished",
            trials=count_trials(history, len(running)),
            seconds_left=estimate_seconds_left(history, done, at_a_time) if work.is_under_way else None,
            best=format_best(history, ranked[0] if ranked else None),
            front=[trial.name for trial in history.pareto_front()],
            running={name: status.summary for name, status in running.items()},
            failed={trial.name: to_single_line(trial.cause) for trial in history.runs if trial.state == "failed"},
        )

    @property
    def summary(self) -> str:
        """The status in one line, such as `searching: 7 of 24 ended, about 12 min left`."""
        ended = f"{sum(self.trials[state] for state in END_STATES)} of {sum(self.trials.values())} ended"
        parts = [", ".join(filter(None, (ended, format_time_left(self.seconds_left)))), to_single_line(self.why)]
        return f"{self.state}: {'; '.join(filter(None, parts))}"

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON types."""
        content = asdict(self)
        return {"sweep": str(content.pop("path")), **content}

    def rows(self) -> dict[str, list[str]]:
        """Return the lines to display, by topic."""
        return {
            "search": [str(self.path)],
            "state": [self.summary],
            "run by": [self.who],
            "trials": [format_counts(self.trials)],
            "best": [self.best] if self.best else [],
            "running": [f"{name} {line}" for name, line in self.running.items()],
            "failed": [f"{name}: {cause}" for name, cause in self.failed.items()],
            "to resume": [f"fmfsd-tune --resume {self.path}"] if self.is_resumable else [],
        }


def _history(sweep: SweepDir) -> History:
    """Return the history, with the options of the last start: a resumed sweep may have changed some."""
    from pydantic import TypeAdapter

    ledger_facts = read_facts(sweep.ledger)
    options = [fact["options"] for fact in ledger_facts if "options" in fact]
    history = History(TypeAdapter(TuneOptions).validate_python(options[-1]) if options else TuneOptions(trials=0))
    for fact in ledger_facts:
        history.add(fact)
    return history


def _running(sweep: SweepDir, history: History) -> Iterator[tuple[str, RunStatus]]:
    for trial in history.unfinished:
        if RunActivity.read(run := sweep.trial(trial.name)).is_under_way:
            yield trial.name, RunStatus.read(run)


def _share_done(status: RunStatus) -> float:
    """Return the completed share of a trial's steps, from 0 to 1."""
    return status.progress.get("step", 0) / status.progress.get("total_steps", 1)


def _state(sweep: SweepDir, work: RunActivity) -> tuple[str, str]:
    """Return the state and its cause."""
    run = sweep.coordinator_dir
    if work.is_under_way:
        return ("stopping" if run.stop_request.exists() else "searching"), ""
    if work.owner is None:
        return "new", "the sweep was never started"
    with suppress(OSError, ValueError):
        outcome = read_json(run.outcome) if work.has_ended else {}
        if "state" in outcome:
            return str(outcome["state"]), str(outcome.get("cause") or "")
    return "lost", "the coordinator is gone without an outcome"
