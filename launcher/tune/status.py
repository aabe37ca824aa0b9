"""How a search is doing, read from its folder: a value that can be shown."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.system.atomic_files import read_json
from launcher.config.launch_config import TuneOptions
from launcher.config.plain_text import in_a_line
from launcher.run_dir.activity import Work
from launcher.run_dir.status import Status
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.display.eta import ENDED, counts, seconds_left
from launcher.tune.display.formatting import best_text, counts_text, left_text
from launcher.tune.records.history import History
from launcher.tune.records.ledger import facts


@dataclass(frozen=True)
class SweepStatus:
    """What is known of a search now.

    `state` is searching or stopping; finished, stopped, failed or interrupted; lost, if whoever ran it is gone without
    an outcome; new, if nobody has run it. `trials` are counted by state. `running` has a line by trial, `failed` the
    causes by trial.
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
    def of(cls, sweep: SweepDir) -> "SweepStatus":
        """CheckError if the ledger is damaged."""
        history, work = _history(sweep), Work.on(sweep.coordination)
        (state, why), running = _state(sweep, work), dict(_running(sweep, history))
        ranked = history.ranked()
        done = [_done(status) for status in running.values()]
        at_a_time = history.options.concurrent or len(running)
        return cls(
            path=sweep.path,
            state=state,
            why=why,
            who=work.who,
            is_resumable=not work.is_under_way and state != "finished",
            trials=counts(history, len(running)),
            seconds_left=seconds_left(history, done, at_a_time) if work.is_under_way else None,
            best=best_text(history, ranked[0] if ranked else None),
            front=[trial.name for trial in history.front()],
            running={name: status.line for name, status in running.items()},
            failed={trial.name: in_a_line(trial.cause) for trial in history.runs if trial.state == "failed"},
        )

    @property
    def line(self) -> str:
        """`searching: 7 of 24 ended, about 12 min left`."""
        ended = f"{sum(self.trials[state] for state in ENDED)} of {sum(self.trials.values())} ended"
        parts = [", ".join(filter(None, (ended, left_text(self.seconds_left)))), in_a_line(self.why)]
        return f"{self.state}: {'; '.join(filter(None, parts))}"

    def told(self) -> dict[str, Any]:
        """As JSON."""
        content = asdict(self)
        return {"sweep": str(content.pop("path")), **content}

    def rows(self) -> dict[str, list[str]]:
        """For people: lines by what they are about."""
        return {
            "search": [str(self.path)],
            "state": [self.line],
            "run by": [self.who],
            "trials": [counts_text(self.trials)],
            "best": [self.best] if self.best else [],
            "running": [f"{name} {line}" for name, line in self.running.items()],
            "failed": [f"{name}: {cause}" for name, cause in self.failed.items()],
            "to go on": [f"fmfsd-tune --resume {self.path}"] if self.is_resumable else [],
        }


def _history(sweep: SweepDir) -> History:
    """With the options that the ledger tells last, as a search that goes on may have others."""
    from pydantic import TypeAdapter

    told = facts(sweep.ledger)
    options = [fact["options"] for fact in told if "options" in fact]
    history = History(TypeAdapter(TuneOptions).validate_python(options[-1]) if options else TuneOptions(trials=0))
    for fact in told:
        history.add(fact)
    return history


def _running(sweep: SweepDir, history: History) -> Iterator[tuple[str, Status]]:
    for trial in history.unfinished:
        if Work.on(run := sweep.trial(trial.name)).is_under_way:
            yield trial.name, Status.of(run)


def _done(status: Status) -> float:
    """The share of its steps."""
    return status.progress.get("step", 0) / status.progress.get("total_steps", 1)


def _state(sweep: SweepDir, work: Work) -> tuple[str, str]:
    """And why."""
    run = sweep.coordination
    if work.is_under_way:
        return ("stopping" if run.stop_request.exists() else "searching"), ""
    if work.owner is None:
        return "new", "nobody has run it yet"
    with suppress(OSError, ValueError):
        outcome = read_json(run.outcome) if work.has_ended else {}
        if "state" in outcome:
            return str(outcome["state"]), str(outcome.get("cause") or "")
    return "lost", "whoever ran it is gone without an outcome"
