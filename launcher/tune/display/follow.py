"""Follows a sweep by reading its files: the ledger, and the progress of running trials."""

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
from launcher.tune.display.eta import count_trials, estimate_seconds_left
from launcher.tune.records.history import History, Trial


@dataclass(frozen=True)
class RunningTrial:
    """A running trial. `done`: completed share of its steps, from 0 to 1. Unknown values are empty or 0."""

    trial: Trial
    state: str = "starting"
    done: float = 0.0
    epoch: int = 0
    epochs: int = 0
    images_per_s: float = 0.0

    @classmethod
    def from_progress(cls, trial: Trial, progress: Mapping[str, Any]) -> "RunningTrial":
        """Return the running trial with the progress of rank 0."""
        total, per_epoch = progress.get("total_steps", 0), progress.get("steps_per_epoch", 0)
        known: dict[str, Any] = {"state": str(progress.get("state", "starting"))}
        if total and per_epoch:
            step, epochs = progress["step"], -(-total // per_epoch)
            known |= {"done": step / total, "epoch": max(step - 1, 0) // per_epoch + 1, "epochs": epochs}
        return cls(trial, images_per_s=progress.get("images_per_s", 0.0), **known)


class SweepFollower:
    """Follows a sweep. `history` is the state of the ledger at the last poll, which reads only new lines.

    A trial counts as running if one of its attempts has started since the follower was created.
    """

    def __init__(self, sweep: SweepDir, options: TuneOptions) -> None:
        self._sweep, self.history = sweep, History(options)
        self._ledger = GrowingFile(sweep.ledger)
        self._most_at_a_time = 0
        self.poll()
        self._reported_attempts = {trial.number: self._run(trial).last_attempt() for trial in self.history.unfinished}
        self._initial_attempts = dict(self._reported_attempts)

    def poll(self) -> list[dict[str, Any]]:
        """Read and return the new facts. Raise OSError if the ledger can not be read."""
        new_facts = []
        with suppress(FileNotFoundError):
            while lines := self._ledger.read_new_lines():
                for line in lines:
                    with suppress(ValueError, KeyError, TypeError):  # the driver itself refuses a damaged ledger
                        fact = json.loads(line)
                        self.history.add(fact)
                        new_facts.append(fact)
        return new_facts

    def running_trials(self) -> list[RunningTrial]:
        """Return the running trials."""
        running = []
        for trial in self.history.unfinished:
            attempt = (run := self._run(trial)).last_attempt()
            if attempt > self._initial_attempts.get(trial.number, 0):
                running.append(RunningTrial.from_progress(trial, _progress(run, attempt)))
        self._most_at_a_time = max(self._most_at_a_time, len(running))
        return running

    def failed_attempts(self) -> Iterator[str]:
        """Yield a message for each failed attempt of a trial that another attempt follows, once."""
        for trial in self.history.unfinished:
            run, reported = self._run(trial), self._reported_attempts.get(trial.number, 0)
            last = self._reported_attempts[trial.number] = run.last_attempt()
            for number in range(max(reported, self._initial_attempts.get(trial.number, 0) + 1), last):
                cause = _read_attempt(run, number).get("cause") or "its coordinator is gone"
                yield f"trial {trial.name}, attempt {number}: {cause}; attempt {number + 1} continues"

    def count_trials(self, running: list[RunningTrial]) -> dict[str, int]:
        return count_trials(self.history, len(running))

    def estimate_seconds_left(self, running: list[RunningTrial]) -> float | None:
        at_a_time = self.history.options.concurrent or self._most_at_a_time
        return estimate_seconds_left(self.history, [each.done for each in running], at_a_time)

    def _run(self, trial: Trial) -> RunDir:
        return self._sweep.trial(trial.name)


def _progress(run: RunDir, attempt: int) -> dict[str, Any]:
    """Return the progress of rank 0; empty if it is of an earlier attempt."""
    with suppress(OSError, ValueError):
        progress = read_json(run.rank_progress(0))
        return progress if progress.get("attempt") == attempt else {}
    return {}


def _read_attempt(run: RunDir, attempt: int) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return read_json(run.attempt(attempt))
    return {}
