"""Draws a sweep's trials and keeps its ledger: what is run next, and what became of it."""

import hashlib
from collections.abc import Mapping
from typing import Any

from fmfsd.config import dump_config, load_config
from fmfsd.errors import ConfigError
from launcher.config.launch_config import TuneOptions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History, Trial, TrialState
from launcher.tune.records.ledger import Ledger
from launcher.tune.sampling.sampler import Search
from launcher.tune.space.load import Space
from launcher.tune.space.parameters import overrides

REPEATS = 200
"""So many draws of known configs in a row: the space is at its end, or nearly."""


class Book:
    """A sweep that begins, or goes on where its ledger ends: the search is told again all that it knew."""

    def __init__(self, sweep: SweepDir, space: Space, options: TuneOptions) -> None:
        self._sweep, self._options = sweep, options
        self.history = History.read(sweep.ledger, options)
        self._ledger, self._search = Ledger(sweep.ledger), Search(space, options)
        for trial in self.history.trials.values():
            self._search.recall(trial)
        self._to_go_on = list(self.history.unfinished)

    def next_trial(self) -> Trial | None:
        """Those that were interrupted first, then new ones. None: there is nothing more to run."""
        if self._to_go_on:
            return self._to_go_on.pop(0)
        for _ in range(REPEATS):
            if len(self.history.runs) >= self._options.trials:
                return None
            number = max(self.history.trials, default=0) + 1
            draw = self._search.draw(number)
            if draw is None:
                break
            trial = self._noted(number, draw.values, draw.memory)
            if trial.repeats is None and trial.state == "asked":
                return trial
        return None

    @property
    def begins(self) -> bool:
        """Whether the next trial is a new one, for which there must be room: not one that goes on, nor the end."""
        return not self._to_go_on and len(self.history.runs) < self._options.trials

    def _noted(self, number: int, values: Mapping[str, Any], memory: Mapping[str, Any]) -> Trial:
        try:
            digest, refusal = self._digest(values), ""
        except ConfigError as error:  # a combination so rare that the check has not met it
            digest, refusal = f"refused {number}", str(error)
        equal = next((trial.number for trial in self.history.runs if trial.digest == digest), None)
        told = {"trial": number, "values": dict(values), "digest": digest, "memory": dict(memory)}
        if equal is None:
            self.note("asked", **told)
        else:
            self.note("repeated", of=equal, **told)
            self._tell_if_ended(self.history.trials[number])
        if refusal:
            self.ended(number, "failed", {}, cause=refusal)
        return self.history.trials[number]

    def _digest(self, values: Mapping[str, Any]) -> str:
        """Of the whole config, so that two ways to say the same are equal."""
        config = load_config(str(self._sweep.config), overrides(values))
        return hashlib.sha256(dump_config(config).encode()).hexdigest()

    def reported(self, trial: Trial, epoch: int, metrics: Mapping[str, float]) -> None:
        """Once for each epoch, also if a record comes again."""
        if epoch not in trial.reports:
            self.note("reported", trial=trial.number, epoch=epoch, metrics=dict(metrics))

    def ended(
        self, number: int, state: TrialState, metrics: Mapping[str, float], *, cause: str = "", seconds: float = 0.0
    ) -> None:
        self.note("ended", trial=number, state=state, metrics=dict(metrics), cause=cause, seconds=round(seconds, 3))
        for trial in self.history.trials.values():
            if number in (trial.number, trial.repeats):
                self._tell_if_ended(trial)

    def _tell_if_ended(self, trial: Trial) -> None:
        if trial.state != "asked":
            self._search.tell(trial)

    def note(self, fact: str, **values: Any) -> None:
        """On the disk first."""
        self._ledger.note(fact, **values)
        self.history.add({"fact": fact, **values})

    def close(self) -> None:
        self._ledger.close()
