"""Grouping of runs that differ only in their seed, and statistics over the runs of a group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fmfsd.report.charts.run_charts import Line
from fmfsd.report.format_numbers import format_value
from fmfsd.report.read_run import RunFiles


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one config; `label`: the settings that differ from the other groups."""

    label: str
    runs: Sequence[RunFiles]


def group_by_config(runs: Sequence[RunFiles]) -> list[SeedGroup]:
    """Group runs by config, in the order of `runs`."""
    values = [run.config_values for run in runs]
    keys = list(dict.fromkeys(key for each in values for key in each))
    varying = [key for key in keys if len({format_value(each.get(key)) for each in values}) > 1]
    groups: dict[str, list[RunFiles]] = {}
    for run, each in zip(runs, values, strict=True):
        label = ", ".join(f"{key} {format_value(each.get(key))}" for key in varying)
        groups.setdefault(label, []).append(run)
    return [SeedGroup(label or runs[0].name, members) for label, members in groups.items()]


def mean_line(label: str, group: SeedGroup, split: str, metric: str, x: str = "epoch") -> Line | None:
    """Return the mean over a group's runs at each `x` that all of them have reached; the band is minimum to maximum."""
    curves = [
        {
            record[x]: record[metric]
            for record in run.records_of_split(split)
            if _is_number(record.get(metric)) and x in record
        }
        for run in group.runs
    ]
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    xs = sorted(set.intersection(*map(set, curves)))
    values = [[curve[x_value] for curve in curves] for x_value in xs]
    means = [(float(x_value), sum(each) / len(each)) for x_value, each in zip(xs, values, strict=True)]
    band = [(min(each), max(each)) for each in values] if len(curves) > 1 else ()
    return Line(label, means, "series", band) if means else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
