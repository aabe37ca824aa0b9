"""Runs that differ by their seed alone belong together; groups are called by what tells them apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fmfsd.report.charts.run_charts import Line
from fmfsd.report.format_numbers import shown_value
from fmfsd.report.read_run import RunFiles


@dataclass(frozen=True)
class Group:
    """`label` says how its config differs from the others'."""

    label: str
    runs: Sequence[RunFiles]


def grouped(runs: Sequence[RunFiles]) -> list[Group]:
    """In the order in which they were given."""
    values = [run.values for run in runs]
    keys = list(dict.fromkeys(key for each in values for key in each))
    telling = [key for key in keys if len({shown_value(each.get(key)) for each in values}) > 1]
    found: dict[str, list[RunFiles]] = {}
    for run, each in zip(runs, values, strict=True):
        label = ", ".join(f"{key} {shown_value(each.get(key))}" for key in telling)
        found.setdefault(label, []).append(run)
    return [Group(label or runs[0].name, members) for label, members in found.items()]


def mean_line(label: str, group: Group, split: str, metric: str, x: str = "epoch") -> Line | None:
    """The mean over the runs of a group at each place that all of them have reached; the band from least to most."""
    courses = [
        {record[x]: record[metric] for record in run.split(split) if _is_number(record.get(metric)) and x in record}
        for run in group.runs
    ]
    courses = [course for course in courses if course]
    if not courses:
        return None
    places = sorted(set.intersection(*map(set, courses)))
    values = [[course[place] for course in courses] for place in places]
    means = [(float(place), sum(each) / len(each)) for place, each in zip(places, values, strict=True)]
    band = [(min(each), max(each)) for each in values] if len(courses) > 1 else ()
    return Line(label, means, "series", band) if means else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def interval(share: float, samples: int) -> tuple[float, float]:
    """95 %, of a share of so many samples (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    z = 1.959964
    middle = share + z**2 / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    scale = 1 + z**2 / samples
    return (middle - half) / scale, (middle + half) / scale
