"""Parameter importance: PED-ANOVA, by Optuna.

It measures how far the distribution of the best trials' values is from that of all trials (arXiv:2304.10255, for
conditional parameters arXiv:2601.20800). Each metric is evaluated alone. A subset counts as one boolean per tap.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.tune.records.history import History, Trial
from launcher.tune.space.load import Parameter, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MIN_TRIALS = 10
BEST_SHARE, FEWEST_BEST = 0.1, 5
"""The best trials are a tenth, and at least five, as Optuna's documentation of the evaluator recommends."""

OptunaEntry = tuple[str, "BaseDistribution", Any]
"""A parameter's name in Optuna, its distribution and its value."""


@dataclass(frozen=True)
class Importances:
    """Importances for one metric: shares that sum to 1, largest first; None, with the reason, if they are undefined."""

    metric: str
    trials: int
    shares: Mapping[str, float] | None
    reason: str = ""


def compute_importances(space: Space, history: History) -> list[Importances]:
    """Return the importances for each metric, from the finished trials."""
    finished = [trial for trial in history.runs if trial.state == "finished"]
    return [
        _importances(space, finished, metric, [history.objectives(trial)[index] for trial in finished], mode)
        for index, (metric, mode) in enumerate(zip(history.options.metrics, history.options.modes, strict=True))
    ]


def _importances(
    space: Space, trials: Sequence[Trial], metric: str, results: Sequence[float], mode: str
) -> Importances:
    def undefined(reason: str) -> Importances:
        return Importances(metric, len(trials), None, reason)

    if len(trials) < MIN_TRIALS:
        return undefined(f"{len(trials)} finished trials are too few: at least {MIN_TRIALS} are needed")
    if len(set(results)) == 1:
        return undefined(f"{metric} is the same in all {len(trials)} finished trials")
    if all(trial.values == trials[0].values for trial in trials):
        return undefined(f"all {len(trials)} finished trials have the same values")
    scores = _evaluate(space, trials, results, mode)
    total = sum(scores.values())
    if not total > 0:
        return undefined("the best trials' values have the same distribution as those of all trials")
    largest_first = sorted(scores, key=lambda name: (-scores[name], name))
    return Importances(metric, len(trials), {name: scores[name] / total for name in largest_first})


def _evaluate(space: Space, trials: Sequence[Trial], results: Sequence[float], mode: str) -> dict[str, float]:
    import optuna

    share = max(BEST_SHARE, (FEWEST_BEST - 0.5) / len(trials))  # minus a half, since Optuna rounds the count up
    with _quiet():
        study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        study.add_trials(
            [_to_optuna_trial(space, trial, result) for trial, result in zip(trials, results, strict=True)]
        )
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        return evaluator.evaluate(study)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Optuna's log lines for each study, and its warnings about parameters that few trials have."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _to_optuna_trial(space: Space, trial: Trial, result: float) -> "FrozenTrial":
    from optuna.trial import create_trial

    entries = [
        entry
        for each in space.parameters
        if each.key in trial.values
        for entry in _entries(each, trial.values[each.key])
    ]
    return create_trial(
        params={name: value for name, _, value in entries},
        distributions={name: distribution for name, distribution, _ in entries},
        value=result,
    )


def _entries(parameter: Parameter, value: Any) -> Iterator[OptunaEntry]:
    """Yield Optuna's entries of a parameter, none for a constant. Choices become JSON, as Optuna accepts no lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    key, kind, values = parameter.key, parameter.kind, parameter.values
    if kind == "subset":
        for tap in values:
            yield f"{key}: {tap}", CategoricalDistribution((False, True)), tap in value
    elif kind == "int":
        yield key, IntDistribution(values[0], values[1]), value
    elif kind in ("uniform", "loguniform", "quniform"):
        low, high = values[:2]
        yield key, FloatDistribution(low, high, log=kind == "loguniform"), min(max(value, low), high)
    elif kind != "const":
        yield key, CategoricalDistribution(tuple(map(json.dumps, values))), json.dumps(value)
