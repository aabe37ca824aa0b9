"""What each tap of a searched branch placement brings, and each pair of taps: least squares over finished trials.

Searches place taps unevenly (sizes are bounded, and a searcher comes back to what went well), so the plain mean with a
tap less the plain mean without it also holds what the other taps bring. So the effects are those of a linear model, all
taps at once: metric = constant + the effects of the taps that are there. A pair's interaction is the coefficient of one
product put beside them: the difference of differences, the other taps held fixed.

What else was searched is not in the model. Drawn at random it is noise, which the standard errors hold; a searcher that
learns may have tried good placements with good values of the rest, and then effects tell of its trials, not of causes.
Trials that were stopped early are left out, as their last metrics are of other epochs.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from fmfsd.report.paired_tests import t_quantile
from launcher.tune.records.history import History, Trial
from launcher.tune.space.load import Parameter, Space

Matrix = npt.NDArray[np.float64]
Estimate = tuple[float | None, float | None, float | None]
"""Value, standard error, half the width of the interval."""


@dataclass(frozen=True)
class Effect:
    """Of one tap or of a pair, in the metric's unit.

    `counts`: trials without and with the tap; of a pair with neither, the second, the first, and both. `value` is None
    where these trials can't tell it from the other taps' effects; `error`, its standard error, and `half_width`, of its
    95 % interval, where as many trials as unknowns leave none to estimate noise from.
    """

    taps: tuple[str, ...]
    counts: tuple[int, ...]
    value: float | None
    error: float | None
    half_width: float | None


@dataclass(frozen=True)
class Placement:
    """One placement's trials: how many, and mean and standard deviation of the metric; of one trial, None."""

    taps: tuple[str, ...]
    count: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Effects:
    """Of one subset parameter on the first metric. Pairs have trials with neither, either and both of their taps."""

    parameter: str
    metric: str
    trials: int
    taps: list[Effect]
    pairs: list[Effect]
    placements: list[Placement]


def effects(space: Space, history: History) -> list[Effects]:
    """Of each subset parameter that a finished trial has."""
    finished = [trial for trial in history.runs if trial.state == "finished"]
    subsets = [parameter for parameter in space.parameters if parameter.kind == "subset"]
    having = [(each, [trial for trial in finished if each.key in trial.values]) for each in subsets]
    return [_effects(parameter, trials, history) for parameter, trials in having if trials]


def _effects(parameter: Parameter, trials: Sequence[Trial], history: History) -> Effects:
    taps = list(map(str, parameter.values))
    placed = [tuple(map(str, trial.values[parameter.key])) for trial in trials]
    there = np.array([[tap in each for tap in taps] for each in placed], dtype=np.float64).reshape(len(trials), -1)
    results = np.array([history.objectives(trial)[0] for trial in trials])
    pairs = [_pair(taps, there, results, pair) for pair in combinations(range(len(taps)), 2)]
    return Effects(
        parameter.key,
        history.options.metrics[0],
        len(trials),
        _main(taps, there, results),
        [pair for pair in pairs if min(pair.counts) > 0],
        _placements(placed, list(results), best_first=history.options.modes[0] == "max"),
    )


def _main(taps: Sequence[str], there: Matrix, results: Matrix) -> list[Effect]:
    fitted = _fit(there, results)
    with_it = there.sum(axis=0).astype(int)
    counts = [(len(results) - int(count), int(count)) for count in with_it]
    return [Effect((tap,), count, *found) for tap, count, found in zip(taps, counts, fitted, strict=True)]


def _pair(taps: Sequence[str], there: Matrix, results: Matrix, pair: tuple[int, int]) -> Effect:
    one, other = there[:, pair[0]], there[:, pair[1]]
    cells = np.bincount((2 * one + other).astype(int), minlength=4)
    found = _fit(np.column_stack([there, one * other]), results)[-1]
    return Effect((taps[pair[0]], taps[pair[1]]), tuple(map(int, cells)), *found)


def _fit(columns: Matrix, results: Matrix) -> list[Estimate]:
    """Each column's coefficient beside a constant.

    A coefficient can be told if its unit vector lies in the space of the rows, which pinv(X'X) X'X projects onto. Of
    columns of 0 and 1 the products X'X are exact.
    """
    design = np.column_stack([np.ones(len(results)), columns])
    products = design.T @ design
    inverse = np.linalg.pinv(products, hermitian=True)
    coefficients = inverse @ (design.T @ results)
    can_be_told = np.isclose(np.diag(inverse @ products), 1.0)
    spare = len(results) - int(np.linalg.matrix_rank(products, hermitian=True))
    residuals = results - design @ coefficients
    variance = float(residuals @ residuals) / spare if spare else None
    scales = np.diag(inverse)
    return [
        _estimate(float(coefficients[n]), variance, float(scales[n]), spare) if can_be_told[n] else (None, None, None)
        for n in range(1, len(coefficients))
    ]


def _estimate(coefficient: float, variance: float | None, scale: float, spare: int) -> Estimate:
    if variance is None:
        return coefficient, None, None
    error = math.sqrt(variance * scale)
    return coefficient, error, t_quantile(spare) * error


def _placements(placed: Sequence[tuple[str, ...]], results: Sequence[float], *, best_first: bool) -> list[Placement]:
    by_taps: dict[tuple[str, ...], list[float]] = {}
    for taps, result in zip(placed, results, strict=True):
        by_taps.setdefault(taps, []).append(float(result))
    found = [_placement(taps, by_taps[taps]) for taps in dict.fromkeys(placed)]
    return sorted(found, key=lambda each: each.mean, reverse=best_first)


def _placement(taps: tuple[str, ...], results: Sequence[float]) -> Placement:
    deviation = statistics.stdev(results) if len(results) > 1 else None
    return Placement(taps, len(results), statistics.mean(results), deviation)
