"""Follows a sweep by its files alone: what its ledger comes to, and how far the trials are that run now."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.launch_config import TuneOptions
from launcher.run_dir.log_follower import GrowingFile
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.display.eta import counts, seconds_left
from launcher.tune.records.history import History, Trial


@dataclass(frozen=True)
class Running:
    """A trial that runs now. `done` is the share of its steps, from 0 to 1; what is not known is empty or 0."""

    trial: Trial
    state: str = "starting"
    done: float = 0.0
    epoch: int = 0
    epochs: int = 0
    images_per_s: float = 0.0

    @classmethod
    def of(cls, trial: Trial, progress: Mapping[str, Any]) -> "Running":
        """By rank 0's progress."""
        total, per_epoch = progress.get("total_steps", 0), progress.get("steps_per_epoch", 0)
        known: dict[str, Any] = {"state": str(progress.get("state", "starting"))}
        if total and per_epoch:
            step, epochs = progress["step"], -(-total // per_epoch)
            known |= {"done": step / total, "epoch": max(step - 1, 0) // per_epoch + 1, "epochs": epochs}
        return cls(trial, images_per_s=progress.get("images_per_s", 0.0), **known)


class SweepFollower:
    """`history` is what the ledger came to at the last look, which reads only what is new.

    A trial runs if an attempt at it has begun since the follower was made.
    """

    def __init__(self, sweep: SweepDir, options: TuneOptions) -> None:
        self._sweep, self.history = sweep, History(options)
        self._ledger = GrowingFile(sweep.ledger)
        self._most_at_a_time = 0
        self.look()
        self._told = {trial.number: self._run(trial).last_attempt() for trial in self.history.unfinished}
        self._begun = dict(self._told)

    def look(self) -> list[dict[str, Any]]:
        """The facts that are new. OSError if the ledger can't be read now."""
        found = []
        with suppress(FileNotFoundError):
            while lines := self._ledger.new_lines():
                for line in lines:
                    with suppress(ValueError, KeyError, TypeError):  # the search itself refuses a damaged ledger
                        fact = json.loads(line)
                        self.history.add(fact)
                        found.append(fact)
        return found

    def running(self) -> list[Running]:
        found = []
        for trial in self.history.unfinished:
            attempt = (run := self._run(trial)).last_attempt()
            if attempt > self._begun.get(trial.number, 0):
                found.append(Running.of(trial, _progress(run, attempt)))
        self._most_at_a_time = max(self._most_at_a_time, len(found))
        return found

    def troubles(self) -> Iterator[str]:
        """Of each attempt at a trial that came to nothing and is followed by another: once."""
        for trial in self.history.unfinished:
            run, told = self._run(trial), self._told.get(trial.number, 0)
            last = self._told[trial.number] = run.last_attempt()
            for number in range(max(told, self._begun.get(trial.number, 0) + 1), last):
                found = _read(run, number)
                why = found.get("cause") or "whoever ran it is gone"
                yield f"trial {trial.name}, attempt {number}: {why}; attempt {number + 1} goes on"

    def counts(self, running: list[Running]) -> dict[str, int]:
        return counts(self.history, len(running))

    def seconds_left(self, running: list[Running]) -> float | None:
        at_a_time = self.history.options.concurrent or self._most_at_a_time
        return seconds_left(self.history, [one.done for one in running], at_a_time)

    def _run(self, trial: Trial) -> RunDir:
        return self._sweep.trial(trial.name)


def _progress(run: RunDir, attempt: int) -> dict[str, Any]:
    """Rank 0's, unless it is an earlier attempt's."""
    with suppress(OSError, ValueError):
        progress = read_json(run.rank_progress(0))
        return progress if progress.get("attempt") == attempt else {}
    return {}


def _read(run: RunDir, attempt: int) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return read_json(run.attempt(attempt))
    return {}
