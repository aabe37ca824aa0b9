"""The history of a sweep, built from its ledger: trials, their results and their ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Literal

from fmfsd.errors import CheckError, Problem
from launcher.config.launch_config import TuneOptions
from launcher.tune.records.ledger import read_facts
from launcher.tune.space.parameters import format_overrides

TrialState = Literal["asked", "finished", "pruned", "failed"]


@dataclass
class Trial:
    """A config that the sampler has drawn, and its results.

    `values`: the active parameters, by config key. `sampler_state`: state of the sampler, needed on resume. `reports`:
    metrics by epoch. `metrics`: the last metrics. `cause`: why the trial failed. `duplicate_of`: number of an earlier
    trial with an equal config, whose results this trial shares. `is_checkpoint_deleted`: its checkpoints were deleted
    to free disk space.
    State `asked` means that the trial has not ended.
    """

    number: int
    values: Mapping[str, Any]
    digest: str
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    state: TrialState = "asked"
    reports: dict[int, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    cause: str = ""
    seconds: float = 0.0
    duplicate_of: int | None = None
    is_checkpoint_deleted: bool = False

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return f"{self.number:04d}"

    @property
    def overrides(self) -> list[str]:
        return format_overrides(self.values)


@dataclass(frozen=True)
class Confirmation:
    """The result of running `config` (a trial's name or `base`) again with a new seed."""

    config: str
    seed: int
    metrics: Mapping[str, float]

    @property
    def name(self) -> str:
        return format_rerun_name(self.config, self.seed)


@dataclass
class History:
    """The content of a ledger."""

    options: TuneOptions
    trials: dict[int, Trial] = field(default_factory=dict)
    confirmations: list[Confirmation] = field(default_factory=list)
    test_metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """Test accuracies of the winners, by trial number."""
    failed_reruns: dict[str, str] = field(default_factory=dict)
    """Causes of failed runs with new seeds, by run folder name; resuming the sweep runs them again."""
    report_order: list[tuple[int, int]] = field(default_factory=list)
    """Trial number and epoch of every report, in the order of arrival."""
    _ranking: list[Trial] | None = field(default=None, init=False, repr=False, compare=False)
    """Cached ranking, discarded when a trial changes."""

    @classmethod
    def read(cls, ledger: Path, options: TuneOptions) -> "History":
        """Read a ledger. Raise CheckError if it is damaged, or if a fact refers to a trial that it lacks."""
        history = cls(options)
        for number, fact in enumerate(read_facts(ledger), 1):
            try:
                history.add(fact)
            except (KeyError, TypeError, AttributeError) as error:
                why = f"does not fit the facts before it ({error}): restore the missing lines, or start another sweep"
                raise CheckError([Problem(f"{ledger}:{number}", why)]) from error
        return history

    def add(self, fact: Mapping[str, Any]) -> None:
        """Apply a fact; facts of unknown kinds are ignored."""
        kind, number = fact["fact"], fact.get("trial")
        if kind in ("asked", "repeated"):
            self._add_trial(fact)
        elif kind == "reported":
            self.trials[fact["trial"]].reports[fact["epoch"]] = fact["metrics"]
            self.report_order.append((fact["trial"], fact["epoch"]))
        elif kind == "ended":
            result = {name: fact[name] for name in ("state", "metrics", "cause", "seconds")}
            self._store(replace(self.trials[fact["trial"]], **result))
        elif kind == "freed":
            self.trials[fact["trial"]].is_checkpoint_deleted = True
        elif kind == "confirmed":
            self.confirmations.append(Confirmation(fact["config"], fact["seed"], fact["metrics"]))
            self.failed_reruns.pop(self.confirmations[-1].name, None)
        elif kind == "unconfirmed":
            self.failed_reruns[format_rerun_name(fact["config"], fact["seed"])] = fact["cause"]
        elif kind == "tested" and number is not None:
            self.test_metrics[number] = fact["metrics"]

    def _add_trial(self, fact: Mapping[str, Any]) -> None:
        trial = Trial(fact["trial"], fact["values"], fact["digest"], fact["memory"], duplicate_of=fact.get("of"))
        self._store(trial)

    def _store(self, trial: Trial) -> None:
        """Store a trial, and copy its results to the trials that repeat it."""
        self.trials[trial.number], self._ranking = trial, None
        for other in self.trials.values():
            if other.duplicate_of == trial.number:
                other.state, other.metrics, other.reports = trial.state, trial.metrics, trial.reports
        if trial.duplicate_of is not None and (original := self.trials[trial.duplicate_of]):
            trial.state, trial.metrics, trial.reports = original.state, original.metrics, original.reports

    @property
    def runs(self) -> list[Trial]:
        """The trials that have a run: those that do not repeat another trial."""
        return [trial for trial in self.trials.values() if trial.duplicate_of is None]

    @property
    def unfinished(self) -> list[Trial]:
        return [trial for trial in self.runs if trial.state == "asked"]

    def objectives(self, trial: Trial) -> tuple[float, ...]:
        """Return the values of the searched metrics, in the order of the options."""
        return tuple(trial.metrics[name] for name in self.options.metrics)

    def rank_trials(self) -> list[Trial]:
        """Return the finished trials, best first; with several metrics, the Pareto front comes first."""
        if self._ranking is None:
            finished = [trial for trial in self.runs if trial.state == "finished"]
            front = {trial.number for trial in self.pareto_front()}
            self._ranking = sorted(
                finished, key=lambda trial: (trial.number not in front, *self._losses(trial), trial.number)
            )
        return list(self._ranking)

    def pareto_front(self) -> list[Trial]:
        """Return the Pareto front of the finished trials, by number."""
        finished = [(self._losses(trial), trial) for trial in self.runs if trial.state == "finished"]
        front: list[tuple[tuple[float, ...], Trial]] = []
        for own, trial in sorted(finished, key=itemgetter(0)):  # only earlier ones can dominate later ones
            if not any(_dominates(other, own) for other, _ in front):
                front.append((own, trial))
        return sorted((trial for _, trial in front), key=attrgetter("number"))

    def _losses(self, trial: Trial) -> tuple[float, ...]:
        """Return the metrics with the sign changed where larger is better."""
        signs = (-1 if mode == "max" else 1 for mode in self.options.modes)
        return tuple(sign * value for sign, value in zip(signs, self.objectives(trial), strict=True))


def format_rerun_name(config: str, seed: int) -> str:
    """Return the folder name of a run of `config` with another seed."""
    return f"{config}-seed-{seed}"


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
