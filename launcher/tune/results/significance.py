"""Significance of the gains of the best configs over the base config, from runs of all of them with the same new seeds.

The configs are compared on the test set if the runs have evaluated it: on the validation samples by which the best
configs were selected, part of their lead is selection bias. Differences are paired by seed. The intervals are Student's
t intervals of each config alone; significance is decided after Holm's correction for the number of compared configs.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmfsd.report.confidence_intervals import CONFIDENCE_LEVEL, PairedDifference, holm_correction
from fmfsd.report.format_numbers import format_difference, is_share
from launcher.tune.records.history import History

BASE = "base"

MetricsBySeed = Mapping[int, Mapping[str, float]]
"""The metrics of one config's runs, by seed."""


@dataclass(frozen=True)
class SeedSpread:
    """Mean and standard deviation over seeds; the deviation is None for one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "SeedSpread":
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class BaseComparison:
    """One config's runs and their comparison with the base config.

    `difference`: paired difference to the base in the metric `judged_by`; None for the base itself and without common
    seeds. `p`: corrected p-value; None for one seed.
    """

    config: str
    judged_by: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, SeedSpread]
    difference: PairedDifference | None = None
    p: float | None = None
    finding: str = ""


def compare_with_base(history: History) -> list[BaseComparison]:
    """Return the comparisons, best mean first and the base last.

    Return none without runs with new seeds, or if these have no searched metric in common.
    """
    runs: dict[str, dict[int, Mapping[str, float]]] = {}
    for each in history.confirmations:
        runs.setdefault(each.config, {})[each.seed] = each.metrics
    criterion = _criterion(history)
    if criterion is None:
        return []
    metric, sign = criterion
    base = runs.pop(BASE, {})
    differences = {config: _difference(seeds, base, metric) for config, seeds in runs.items()}
    p_values = _correct_p_values(differences)
    comparisons = []
    for config, seeds in runs.items():
        difference, p = differences[config], p_values.get(config)
        finding = _finding(metric, sign, difference, p, len(p_values))
        comparisons.append(BaseComparison(config, metric, *_spreads(seeds), difference, p, finding))
    comparisons.sort(key=lambda each: -sign * each.metrics[metric].mean)
    return comparisons + ([BaseComparison(BASE, metric, *_spreads(base))] if base else [])


def _criterion(history: History) -> tuple[str, int] | None:
    """Return the first metric that all runs have, preferably on the test set, and 1 if larger is better, else -1."""
    for metric, mode in zip(history.options.metrics, history.options.modes, strict=True):
        split, _, name = metric.partition("/")
        for candidate in [f"test/{name}", metric] if split == "valid" else [metric]:
            if all(candidate in each.metrics for each in history.confirmations):
                return candidate, 1 if mode == "max" else -1
    return None


def _spreads(runs: MetricsBySeed) -> tuple[tuple[int, ...], dict[str, SeedSpread]]:
    """Return the seeds, and the spread of each metric that all runs have."""
    seeds = sorted(runs)
    names = [name for name in runs[seeds[0]] if all(name in runs[seed] for seed in seeds)]
    return tuple(seeds), {name: SeedSpread.from_values([runs[seed][name] for seed in seeds]) for name in names}


def _difference(runs: MetricsBySeed, base: MetricsBySeed, metric: str) -> PairedDifference | None:
    common = sorted(runs.keys() & base.keys())
    return (
        PairedDifference.from_pairs(*([side[seed][metric] for seed in common] for side in (runs, base)))
        if common
        else None
    )


def _correct_p_values(differences: Mapping[str, PairedDifference | None]) -> dict[str, float]:
    """Return the p-values after Holm's correction, for the configs that have one."""
    p_values = {config: each.p for config, each in differences.items() if each is not None and each.p is not None}
    return dict(zip(p_values, holm_correction(list(p_values.values())), strict=True))


def _finding(metric: str, sign: int, difference: PairedDifference | None, p: float | None, compared: int) -> str:
    """Return the result of the comparison as one sentence."""
    if difference is None:
        return "no seed in common with the base config: no comparison"
    mean, points = format_difference(metric, difference.mean), " points" if is_share(metric) else ""
    measured = f"{mean}{points} of {metric} to {BASE}"
    if p is None or difference.interval is None:
        return f"{measured} with one seed, too few to distinguish a gain from noise"
    low, high = (format_difference(metric, end) for end in difference.interval)
    corrected = f"p = {p:.2g}" + (f" after Holm's correction for {compared} comparisons" if compared > 1 else "")
    return f"{measured}, 95 % interval {low} to {high}, {corrected}: {_verdict(sign * difference.mean, p)}"


def _verdict(gain: float, p: float) -> str:
    if p >= 1 - CONFIDENCE_LEVEL:
        return "the gain may be noise" if gain > 0 else "there is no gain"
    return "the gain is significant" if gain > 0 else f"it is significantly worse than {BASE}"
