"""What a sweep's facts come to: its trials, how each went, and which were best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Literal

from fmfsd.errors import CheckError, Problem
from launcher.config.launch_config import TuneOptions
from launcher.tune.records.ledger import facts
from launcher.tune.space.parameters import overrides

TrialState = Literal["asked", "finished", "pruned", "failed"]


@dataclass
class Trial:
    """A configuration that the search has asked for, and how far it came.

    `values` are the parameters that exist under their conditions, by config key; `memory` is what the search needs to
    know of it again. `reports`: the metrics after so many epochs. `repeats`: an earlier trial of an equal config, whose
    result it has. `metrics` are the last ones, `cause` why it failed.
    """

    number: int
    values: Mapping[str, Any]
    digest: str
    memory: Mapping[str, Any] = field(default_factory=dict)
    state: TrialState = "asked"
    reports: dict[int, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    cause: str = ""
    seconds: float = 0.0
    repeats: int | None = None
    is_freed: bool = False

    @property
    def name(self) -> str:
        """Of its run's folder."""
        return f"{self.number:04d}"

    @property
    def overrides(self) -> list[str]:
        return overrides(self.values)


@dataclass(frozen=True)
class Confirmation:
    """A run of `config`, a trial's name or `base`, with a seed that the search has not seen."""

    config: str
    seed: int
    metrics: Mapping[str, float]

    @property
    def name(self) -> str:
        return name_of_rerun(self.config, self.seed)


@dataclass
class History:
    """Everything that a ledger knows."""

    options: TuneOptions
    trials: dict[int, Trial] = field(default_factory=dict)
    confirmations: list[Confirmation] = field(default_factory=list)
    tested: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """The winners' last accuracies on the test set."""
    unconfirmed: dict[str, str] = field(default_factory=dict)
    """Why runs with such a seed came to nothing, by their folders' names; they are tried again when a sweep goes on."""
    told: list[tuple[int, int]] = field(default_factory=list)
    """Trial and epoch of every report, in the order in which they came."""
    _ranking: list[Trial] | None = field(default=None, init=False, repr=False, compare=False)
    """Until a trial changes."""

    @classmethod
    def read(cls, ledger: Path, options: TuneOptions) -> "History":
        """CheckError if the ledger is damaged, or lacks what others of its facts are about."""
        history = cls(options)
        for number, fact in enumerate(facts(ledger), 1):
            try:
                history.add(fact)
            except (KeyError, TypeError, AttributeError) as error:
                why = (
                    f"does not fit with the facts before it ({error}): put back what is missing, or begin another sweep"
                )
                raise CheckError([Problem(f"{ledger}:{number}", why)]) from error
        return history

    def add(self, fact: Mapping[str, Any]) -> None:
        """Facts of kinds that are not known here change nothing."""
        kind, number = fact["fact"], fact.get("trial")
        if kind in ("asked", "repeated"):
            self._add_trial(fact)
        elif kind == "reported":
            self.trials[fact["trial"]].reports[fact["epoch"]] = fact["metrics"]
            self.told.append((fact["trial"], fact["epoch"]))
        elif kind == "ended":
            ended = {name: fact[name] for name in ("state", "metrics", "cause", "seconds")}
            self._put(replace(self.trials[fact["trial"]], **ended))
        elif kind == "freed":
            self.trials[fact["trial"]].is_freed = True
        elif kind == "confirmed":
            self.confirmations.append(Confirmation(fact["config"], fact["seed"], fact["metrics"]))
            self.unconfirmed.pop(self.confirmations[-1].name, None)
        elif kind == "unconfirmed":
            self.unconfirmed[name_of_rerun(fact["config"], fact["seed"])] = fact["cause"]
        elif kind == "tested" and number is not None:
            self.tested[number] = fact["metrics"]

    def _add_trial(self, fact: Mapping[str, Any]) -> None:
        trial = Trial(fact["trial"], fact["values"], fact["digest"], fact["memory"], repeats=fact.get("of"))
        self._put(trial)

    def _put(self, trial: Trial) -> None:
        """And give what repeats it its result."""
        self.trials[trial.number], self._ranking = trial, None
        for other in self.trials.values():
            if other.repeats == trial.number:
                other.state, other.metrics, other.reports = trial.state, trial.metrics, trial.reports
        if trial.repeats is not None and (of := self.trials[trial.repeats]):
            trial.state, trial.metrics, trial.reports = of.state, of.metrics, of.reports

    @property
    def runs(self) -> list[Trial]:
        """Without those that repeat another."""
        return [trial for trial in self.trials.values() if trial.repeats is None]

    @property
    def unfinished(self) -> list[Trial]:
        return [trial for trial in self.runs if trial.state == "asked"]

    def objectives(self, trial: Trial) -> tuple[float, ...]:
        """The values of the metrics that are searched for, in their order."""
        return tuple(trial.metrics[name] for name in self.options.metrics)

    def ranked(self) -> list[Trial]:
        """The finished ones, best first; of several metrics the front first, in the order of the first metric."""
        if self._ranking is None:
            found = [trial for trial in self.runs if trial.state == "finished"]
            front = {trial.number for trial in self.front()}
            self._ranking = sorted(
                found, key=lambda trial: (trial.number not in front, *self._losses(trial), trial.number)
            )
        return list(self._ranking)

    def front(self) -> list[Trial]:
        """Those that no other finished trial is at least as good as in all metrics and better in one."""
        found = [(self._losses(trial), trial) for trial in self.runs if trial.state == "finished"]
        front: list[tuple[tuple[float, ...], Trial]] = []
        for own, trial in sorted(found, key=itemgetter(0)):  # so that only those before it may be better
            if not any(_dominates(other, own) for other, _ in front):
                front.append((own, trial))
        return sorted((trial for _, trial in front), key=attrgetter("number"))

    def _losses(self, trial: Trial) -> tuple[float, ...]:
        """Smaller is better."""
        signs = (-1 if mode == "max" else 1 for mode in self.options.modes)
        return tuple(sign * value for sign, value in zip(signs, self.objectives(trial), strict=True))


def name_of_rerun(config: str, seed: int) -> str:
    """Of the folder of a run of `config` with another seed."""
    return f"{config}-seed-{seed}"


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
