"""Whether the best configs are better than the base by more than noise: runs of all with the same new seeds.

They are compared on the test set where the runs have read it: on the samples that the best were chosen by, part of
their lead is that they fit those samples. Differences are taken between runs of the same seed. The intervals are
Student's, of each config alone; whether a gain counts as more than noise is decided after Holm's correction for the
number of configs that are compared.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmfsd.report.format_numbers import is_share, shown_difference
from fmfsd.report.paired_tests import SURE, Paired, holm
from launcher.tune.records.history import History

BASE = "base"

Seeds = Mapping[int, Mapping[str, float]]
"""The metrics of one config's runs."""


@dataclass(frozen=True)
class Spread:
    """Over seeds; of one seed the deviation is None."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Confirmed:
    """One config's runs. `difference`, to the base in `judged_by`, is None of the base itself and without common seeds;
    `p` is corrected, and None of one seed."""

    config: str
    judged_by: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Spread]
    difference: Paired | None = None
    p: float | None = None
    finding: str = ""


def confirmed(history: History) -> list[Confirmed]:
    """Best mean first, the base last; none without confirming runs, or if these have no metric that is searched for."""
    runs: dict[str, dict[int, Mapping[str, float]]] = {}
    for each in history.confirmations:
        runs.setdefault(each.config, {})[each.seed] = each.metrics
    judge = _judge(history)
    if judge is None:
        return []
    metric, sign = judge
    base = runs.pop(BASE, {})
    differences = {config: _difference(seeds, base, metric) for config, seeds in runs.items()}
    p_values = _corrected(differences)
    found = []
    for config, seeds in runs.items():
        difference, p = differences[config], p_values.get(config)
        finding = _finding(metric, sign, difference, p, len(p_values))
        found.append(Confirmed(config, metric, *_spreads(seeds), difference, p, finding))
    found.sort(key=lambda each: -sign * each.metrics[metric].mean)
    return found + ([Confirmed(BASE, metric, *_spreads(base))] if base else [])


def _judge(history: History) -> tuple[str, int] | None:
    """The first metric that all runs have, rather on the test set, and 1 if more is better, else -1."""
    for metric, mode in zip(history.options.metrics, history.options.modes, strict=True):
        split, _, name = metric.partition("/")
        for known in [f"test/{name}", metric] if split == "valid" else [metric]:
            if all(known in each.metrics for each in history.confirmations):
                return known, 1 if mode == "max" else -1
    return None


def _spreads(runs: Seeds) -> tuple[tuple[int, ...], dict[str, Spread]]:
    """Of the metrics that all of these runs have."""
    seeds = sorted(runs)
    names = [name for name in runs[seeds[0]] if all(name in runs[seed] for seed in seeds)]
    return tuple(seeds), {name: Spread.of([runs[seed][name] for seed in seeds]) for name in names}


def _difference(runs: Seeds, base: Seeds, metric: str) -> Paired | None:
    both = sorted(runs.keys() & base.keys())
    return Paired.of(*([of[seed][metric] for seed in both] for of in (runs, base))) if both else None


def _corrected(differences: Mapping[str, Paired | None]) -> dict[str, float]:
    """Of those that have a p."""
    known = {config: each.p for config, each in differences.items() if each is not None and each.p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def _finding(metric: str, sign: int, difference: Paired | None, p: float | None, compared: int) -> str:
    """One sentence."""
    if difference is None:
        return "no seed that the base ran with too: nothing to compare"
    mean, points = shown_difference(metric, difference.mean), " points" if is_share(metric) else ""
    measured = f"{mean}{points} of {metric} to {BASE}"
    if p is None or difference.ends is None:
        return f"{measured} with one seed, which can not tell a gain from noise"
    low, high = (shown_difference(metric, end) for end in difference.ends)
    corrected = f"p = {p:.2g}" + (f" after Holm's correction for {compared} comparisons" if compared > 1 else "")
    return f"{measured}, 95 % interval {low} to {high}, {corrected}: {_verdict(sign * difference.mean, p)}"


def _verdict(gain: float, p: float) -> str:
    if p >= 1 - SURE:
        return "noise may explain the gain" if gain > 0 else "there is no gain"
    return "the gain is more than noise" if gain > 0 else f"it is worse than {BASE} by more than noise"
