"""The page of a run, or of several side by side, from their files."""

from collections.abc import Callable, Iterator, Sequence
from statistics import mean, stdev

from fmfsd.report.charts.run_charts import Axis, plot
from fmfsd.report.format_numbers import NOTHING, is_share, shown_duration, shown_metric
from fmfsd.report.html.markup import Html, joined
from fmfsd.report.html.tables import paragraphs, table
from fmfsd.report.page import Section, page
from fmfsd.report.paired_tests import t_quantile
from fmfsd.report.read_run import Content, RunFiles
from fmfsd.report.sections.attention import attention
from fmfsd.report.sections.confusion import confusion
from fmfsd.report.sections.heads import agreement, calibration, calibration_error, early_exits, exits_beside
from fmfsd.report.sections.provenance import made_with, setups
from fmfsd.report.sections.throughput import course, speed
from fmfsd.report.seed_groups import Group, grouped, interval, mean_line

MOST_SERIES = 16
"""Of more groups only the best by the test or validation accuracy are drawn; all stand in the tables."""
LOSSES = ("loss", "loss_label", "loss_soft_target", "loss_feature")
DEEPEST = "deepest_top1"

Wanted = tuple[str, Group, str, str]
"""A line's label, whose it is, and the split and the metric that it shows."""


def run_page(runs: Sequence[RunFiles]) -> str:
    """At least one."""
    groups, is_one = grouped(runs), len(runs) == 1
    drawn = _drawn(groups)
    parts: list[tuple[str, str, Html]] = [
        ("runs", "Runs", _runs(runs)),
        ("made", "What was run, and with what", made_with(runs[0]) if is_one else Html("")),
        ("test", "On the test set", _tested(groups)),
        ("curves", "Learning curves", joined(*_curves(groups, drawn))),
        *(_of_one(runs[0]) if is_one else [("exits", "Early exits", joined(*exits_beside(drawn)))]),
        ("speed", "Throughput", joined(*speed(drawn, runs))),
        ("course", "Starts and stops", joined(*map(course, runs)) if len(runs) <= MOST_SERIES else Html("")),
        ("config", "What was run", Html("") if is_one else joined(*setups(groups, runs, MOST_SERIES))),
    ]
    sections = [Section(key, title, inside) for key, title, inside in parts if inside]
    title = f"Run {runs[0].name}" if is_one else f"{len(runs)} runs"
    return page(title, _lead(runs), sections)


def _of_one(run: RunFiles) -> list[tuple[str, str, Html]]:
    """What fills a page for each run."""
    split = next((split for split in ("test", "valid") if split in run.evaluations), None)
    found: Content = run.evaluations.get(split, {}) if split else {}
    classes = found.get("classes", ())
    of = f" ({split})" if split else ""
    makers: list[tuple[str, str, Callable[[], Html]]] = [
        ("calibration", f"Calibration{of}", lambda: calibration(found)),
        ("confusion", f"Confusion{of}", lambda: confusion(found, classes)),
        ("attention", "Attention masks", lambda: attention(run, classes)),
        ("agreement", f"Agreement of heads{of}", lambda: agreement(found, run)),
        ("exits", "Early exits", lambda: joined(*early_exits(run))),
    ]
    return [(key, title, made()) for key, title, made in makers]


def _lead(runs: Sequence[RunFiles]) -> str:
    states = [run.state for run in runs]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    told = counted if len(runs) > 1 else states[0]
    methods = ", ".join(dict.fromkeys(f"{run.config.get('method')} on {_data(run)}" for run in runs))
    return f"{methods} · {told}"


def _data(run: RunFiles) -> str:
    return str(run.config.get("data", {}).get("name", "?"))


def _runs(runs: Sequence[RunFiles]) -> Html:
    header = ("run", "state", "seed", "step", "workers", "starts", "time", "images/s", DEEPEST)
    causes = [paragraphs(f"{run.name}: {run.outcome['cause']}") for run in runs if run.outcome.get("cause")]
    return joined(table(header, [_run_row(run) for run in runs]), *causes)


def _run_row(run: RunFiles) -> list[str]:
    last = run.records[-1] if run.records else {}
    workers = run.attempts[-1].get("workers", len(run.workers)) if run.attempts else len(run.workers)
    speeds = [record["images_per_s"] for record in run.split("train") if "images_per_s" in record]
    speed = f"{sorted(speeds)[len(speeds) // 2]:.0f}" if speeds else NOTHING
    evaluated = run.split("test") or run.split("valid")
    top1 = evaluated[-1].get(DEEPEST) if evaluated else None
    time = shown_duration(last["time"]) if "time" in last else NOTHING
    steps = str(last.get("step", 0))
    about = [run.name, run.state, str(run.config.get("seed")), steps, str(workers), str(len(run.attempts)), time, speed]
    return [*about, shown_metric(DEEPEST, top1)]


def _tested(groups: Sequence[Group]) -> Html:
    """Each head by group: the mean over seeds, or of a single run its 95 % interval over images."""
    rows = [row for group in groups for row in _tested_rows(group)]
    header = ("config", "head", "top-1", "95 % interval", "deviation", "calibration error", "runs")
    return joined(table(header, rows), paragraphs(_SPREAD)) if rows else Html("")


_SPREAD = (
    "The last evaluation of the test split, a mean over seeds where there are several. The interval of several seeds "
    "is Student's, beside their standard deviation in percentage points; that of one run is what its number of test "
    "images leaves (Wilson), and says nothing about other seeds."
)


def _tested_rows(group: Group) -> Iterator[list[str]]:
    lasts = [run.split("test")[-1] for run in group.runs if run.split("test")]
    names = [name for name in (lasts[0] if lasts else {}) if name.endswith("_top1")]
    for name in names:
        values, head = [last[name] for last in lasts if name in last], name.removesuffix("_top1")
        known = [error for run in group.runs if (error := calibration_error(run, head)) is not None]
        calibrated = f"{100 * mean(known):.2f} %" if known else NOTHING
        spread = _of_seeds(values) if len(values) > 1 else _of_images(group.runs[0], values[0])
        yield [group.label, head, shown_metric(name, mean(values)), *spread, calibrated, str(len(values))]


def _of_seeds(values: Sequence[float]) -> tuple[str, str]:
    deviation = stdev(values)
    half = t_quantile(len(values) - 1) * deviation / len(values) ** 0.5
    return _ends(mean(values) - half, mean(values) + half), f"{100 * deviation:.2f}"


def _of_images(run: RunFiles, share: float) -> tuple[str, str]:
    samples = sum(map(sum, run.evaluations.get("test", {}).get("confusion", ())))
    return (_ends(*interval(share, samples)) if samples else NOTHING), NOTHING


def _ends(low: float, high: float) -> str:
    """Student's can reach beyond what an accuracy can be."""
    return f"{100 * max(0.0, low):.2f} to {100 * min(1.0, high):.2f}"


def _curves(groups: Sequence[Group], drawn: Sequence[Group]) -> Iterator[Html]:
    """Of one config all that was recorded, by step; of several by epoch, since their steps may differ in size."""
    if len(drawn) < len(groups):
        yield paragraphs(f"Of {len(groups)} configs those {len(drawn)} that came to the highest accuracy.")
    if any(len(group.runs) > 1 for group in drawn):
        yield paragraphs("Lines are means over seeds, bands reach from the least to the most.")
    losses = [("train", name) for name in LOSSES]
    if len(drawn) == 1:
        yield from _chart(
            "Losses in training", "loss", [(name, drawn[0], split, name) for split, name in losses], "step"
        )
        for split in ("valid", "test"):
            heads = _metrics(drawn[0], split, "_top1")
            of_heads = [(name.removesuffix("_top1"), drawn[0], split, name) for name in heads]
            yield from _chart(f"Accuracy of each head, {split}", "top-1", of_heads, "step")
        return
    of_all = [(split, name) for split in ("valid", "test") for name in _metrics(drawn[0], split, "_top1")]
    for split, name in (*losses, *of_all):
        yield from _chart(f"{name}, {split}", name, [(group.label, group, split, name) for group in drawn])


def _drawn(groups: Sequence[Group]) -> Sequence[Group]:
    def reached(group: Group) -> float:
        lasts = [found[-1] for run in group.runs if (found := run.split("test") or run.split("valid"))]
        return max((last.get(DEEPEST, 0.0) for last in lasts), default=0.0)

    return sorted(groups, key=reached, reverse=True)[:MOST_SERIES] if len(groups) > MOST_SERIES else groups


def _metrics(group: Group, split: str, ending: str) -> list[str]:
    records = group.runs[0].split(split)
    return [name for name in (records[-1] if records else {}) if name.endswith(ending)]


def _chart(title: str, metric: str, wanted: Sequence[Wanted], x: str = "epoch") -> Iterator[Html]:
    """Nothing where each has one value, as on a test set that is looked at once: the tables have it."""
    lines = [line for label, group, split, name in wanted if (line := mean_line(label, group, split, name, x))]
    if any(len(line.places) > 1 for line in lines):
        percent = is_share(metric) or metric == "top-1"
        yield plot(title, Axis(x, whole=True), Axis(metric, percent=percent), lines=lines)
