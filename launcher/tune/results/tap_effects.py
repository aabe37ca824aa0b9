"""Effects of each tap of a searched branch placement, and of each pair of taps: least squares over finished trials.

Sweeps place taps unevenly (sizes are bounded, and a sampler exploits good placements), so the mean with a tap minus the
mean without it also contains effects of other taps. Therefore one linear model has all taps: metric = constant + the
effects of the present taps. The interaction of a pair is the coefficient of their product, added to this model: the
difference of differences with the other taps held fixed.

Other searched parameters are not in the model. If they are drawn at random, they are noise, which the standard errors
contain; a sampler that learns may have combined good placements with good values of other parameters, and then the
effects describe its trials and not causes. Trials that were stopped early are left out, since their last metrics are
from other epochs.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from fmfsd.report.confidence_intervals import student_t_quantile
from launcher.tune.records.history import History, Trial
from launcher.tune.space.load import Parameter, Space

Matrix = npt.NDArray[np.float64]
Estimate = tuple[float | None, float | None, float | None]
"""Value, standard error, half width of the 95 % interval."""


@dataclass(frozen=True)
class TapEffect:
    """The effect of one tap or of a pair, in the metric's unit.

    `counts`: trials without and with the tap; for a pair with neither, the second, the first, and both. `value` is None
    if the trials do not identify it. `error` (standard error) and `half_width` (of the 95 % interval) are None if no
    degrees of freedom remain to estimate the noise.
    """

    taps: tuple[str, ...]
    counts: tuple[int, ...]
    value: float | None
    error: float | None
    half_width: float | None


@dataclass(frozen=True)
class Placement:
    """The trials of one placement: count, mean and standard deviation of the metric; None for one trial."""

    taps: tuple[str, ...]
    count: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class TapEffects:
    """The effects of one subset parameter on the first metric; only pairs that have trials in all four cells."""

    parameter: str
    metric: str
    trials: int
    taps: list[TapEffect]
    pairs: list[TapEffect]
    placements: list[Placement]


def compute_tap_effects(space: Space, history: History) -> list[TapEffects]:
    """Return the effects of each subset parameter that a finished trial has."""
    finished = [trial for trial in history.runs if trial.state == "finished"]
    subsets = [parameter for parameter in space.parameters if parameter.kind == "subset"]
    trials_of = [(each, [trial for trial in finished if each.key in trial.values]) for each in subsets]
    return [_effects(parameter, trials, history) for parameter, trials in trials_of if trials]


def _effects(parameter: Parameter, trials: Sequence[Trial], history: History) -> TapEffects:
    taps = list(map(str, parameter.values))
    placed = [tuple(map(str, trial.values[parameter.key])) for trial in trials]
    present = np.array([[tap in each for tap in taps] for each in placed], dtype=np.float64).reshape(len(trials), -1)
    results = np.array([history.objectives(trial)[0] for trial in trials])
    pairs = [_pair(taps, present, results, pair) for pair in combinations(range(len(taps)), 2)]
    return TapEffects(
        parameter.key,
        history.options.metrics[0],
        len(trials),
        _main(taps, present, results),
        [pair for pair in pairs if min(pair.counts) > 0],
        _placements(placed, list(results), best_first=history.options.modes[0] == "max"),
    )


def _main(taps: Sequence[str], present: Matrix, results: Matrix) -> list[TapEffect]:
    fitted = _fit(present, results)
    with_it = present.sum(axis=0).astype(int)
    counts = [(len(results) - int(count), int(count)) for count in with_it]
    return [TapEffect((tap,), count, *estimate) for tap, count, estimate in zip(taps, counts, fitted, strict=True)]


def _pair(taps: Sequence[str], present: Matrix, results: Matrix, pair: tuple[int, int]) -> TapEffect:
    one, other = present[:, pair[0]], present[:, pair[1]]
    cells = np.bincount((2 * one + other).astype(int), minlength=4)
    estimate = _fit(np.column_stack([present, one * other]), results)[-1]
    return TapEffect((taps[pair[0]], taps[pair[1]]), tuple(map(int, cells)), *estimate)


def _fit(columns: Matrix, results: Matrix) -> list[Estimate]:
    """Return the estimate of each column's coefficient, in a model with a constant.

    A coefficient is identified if its unit vector lies in the row space, onto which pinv(X'X) X'X projects. The
    products X'X are exact for columns of 0 and 1.
    """
    design = np.column_stack([np.ones(len(results)), columns])
    products = design.T @ design
    inverse = np.linalg.pinv(products, hermitian=True)
    coefficients = inverse @ (design.T @ results)
    is_identified = np.isclose(np.diag(inverse @ products), 1.0)
    degrees_of_freedom = len(results) - int(np.linalg.matrix_rank(products, hermitian=True))
    residuals = results - design @ coefficients
    variance = float(residuals @ residuals) / degrees_of_freedom if degrees_of_freedom else None
    scales = np.diag(inverse)
    return [
        _estimate(float(coefficients[n]), variance, float(scales[n]), degrees_of_freedom)
        if is_identified[n]
        else (None, None, None)
        for n in range(1, len(coefficients))
    ]


def _estimate(coefficient: float, variance: float | None, scale: float, degrees_of_freedom: int) -> Estimate:
    if variance is None:
        return coefficient, None, None
    error = math.sqrt(variance * scale)
    return coefficient, error, student_t_quantile(degrees_of_freedom) * error


def _placements(placed: Sequence[tuple[str, ...]], results: Sequence[float], *, best_first: bool) -> list[Placement]:
    by_taps: dict[tuple[str, ...], list[float]] = {}
    for taps, result in zip(placed, results, strict=True):
        by_taps.setdefault(taps, []).append(float(result))
    placements = [_placement(taps, by_taps[taps]) for taps in dict.fromkeys(placed)]
    return sorted(placements, key=lambda each: each.mean, reverse=best_first)


def _placement(taps: tuple[str, ...], results: Sequence[float]) -> Placement:
    deviation = statistics.stdev(results) if len(results) > 1 else None
    return Placement(taps, len(results), statistics.mean(results), deviation)
