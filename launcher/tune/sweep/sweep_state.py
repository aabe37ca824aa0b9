"""The state of a sweep: draws the next trial, and records trials and results in the ledger."""

import hashlib
from collections.abc import Mapping
from typing import Any

from fmfsd.config import dump_config, load_config
from fmfsd.errors import ConfigError
from launcher.config.launch_config import TuneOptions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History, Trial, TrialState
from launcher.tune.records.ledger import Ledger
from launcher.tune.sampling.sampler import Sampler
from launcher.tune.space.load import Space
from launcher.tune.space.parameters import format_overrides

MAX_REPEATED_DRAWS = 200
"""After this many draws of known configs in a row, the space counts as exhausted."""


class SweepState:
    """A new sweep, or one that resumes where its ledger ends: the sampler first gets all earlier trials."""

    def __init__(self, sweep: SweepDir, space: Space, options: TuneOptions) -> None:
        self._sweep, self._options = sweep, options
        self.history = History.read(sweep.ledger, options)
        self._ledger, self._sampler = Ledger(sweep.ledger), Sampler(space, options)
        for trial in self.history.trials.values():
            self._sampler.restore(trial)
        self._interrupted = list(self.history.unfinished)

    def next_trial(self) -> Trial | None:
        """Return the next trial, interrupted trials first; None if there is nothing more to run."""
        if self._interrupted:
            return self._interrupted.pop(0)
        for _ in range(MAX_REPEATED_DRAWS):
            if len(self.history.runs) >= self._options.trials:
                return None
            number = max(self.history.trials, default=0) + 1
            draw = self._sampler.draw(number)
            if draw is None:
                break
            trial = self._record_draw(number, draw.values, draw.sampler_state)
            if trial.duplicate_of is None and trial.state == "asked":
                return trial
        return None

    @property
    def is_next_trial_new(self) -> bool:
        """True if the next trial is a new one, which needs disk space, and not an interrupted one or none."""
        return not self._interrupted and len(self.history.runs) < self._options.trials

    def _record_draw(self, number: int, values: Mapping[str, Any], memory: Mapping[str, Any]) -> Trial:
        try:
            digest, refusal = self._digest(values), ""
        except ConfigError as error:  # a combination so rare that the check of the space did not draw it
            digest, refusal = f"refused {number}", str(error)
        original = next((trial.number for trial in self.history.runs if trial.digest == digest), None)
        drawn_trial = {"trial": number, "values": dict(values), "digest": digest, "memory": dict(memory)}
        if original is None:
            self.append_fact("asked", **drawn_trial)
        else:
            self.append_fact("repeated", of=original, **drawn_trial)
            self._report_if_ended(self.history.trials[number])
        if refusal:
            self.record_end(number, "failed", {}, cause=refusal)
        return self.history.trials[number]

    def _digest(self, values: Mapping[str, Any]) -> str:
        """Return the hash of the whole resolved config, so that different spellings of one config are equal."""
        config = load_config(str(self._sweep.config), format_overrides(values))
        return hashlib.sha256(dump_config(config).encode()).hexdigest()

    def record_report(self, trial: Trial, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch; ignore an epoch that was recorded before."""
        if epoch not in trial.reports:
            self.append_fact("reported", trial=trial.number, epoch=epoch, metrics=dict(metrics))

    def record_end(
        self, number: int, state: TrialState, metrics: Mapping[str, float], *, cause: str = "", seconds: float = 0.0
    ) -> None:
        self.append_fact(
            "ended", trial=number, state=state, metrics=dict(metrics), cause=cause, seconds=round(seconds, 3)
        )
        for trial in self.history.trials.values():
            if number in (trial.number, trial.duplicate_of):
                self._report_if_ended(trial)

    def _report_if_ended(self, trial: Trial) -> None:
        if trial.state != "asked":
            self._sampler.report(trial)

    def append_fact(self, fact: str, **values: Any) -> None:
        """Append a fact to the ledger, then to the history."""
        self._ledger.append_fact(fact, **values)
        self.history.add({"fact": fact, **values})

    def close(self) -> None:
        self._ledger.close()
