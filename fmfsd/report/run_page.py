"""Report page of a run, or of several runs side by side, from their files."""

from collections.abc import Callable, Iterator, Sequence
from statistics import mean, stdev

from fmfsd.report.charts.run_charts import Axis, plot
from fmfsd.report.confidence_intervals import student_t_quantile, wilson_interval
from fmfsd.report.format_numbers import MISSING, format_duration, format_metric, is_share
from fmfsd.report.html.markup import Html, join_markup
from fmfsd.report.html.tables import paragraphs, table
from fmfsd.report.page import PageSection, render_page
from fmfsd.report.read_run import Content, RunFiles
from fmfsd.report.sections.attention import attention_section
from fmfsd.report.sections.confusion import confusion_section
from fmfsd.report.sections.heads import (
    agreement_section,
    calibration_error,
    calibration_section,
    compare_early_exits,
    early_exit_charts,
)
from fmfsd.report.sections.provenance import provenance_of_runs, provenance_section
from fmfsd.report.sections.throughput import attempt_history, throughput_charts
from fmfsd.report.seed_groups import SeedGroup, group_by_config, mean_line

MAX_SERIES = 16
"""Most groups in a chart: the best ones by test or validation accuracy. The tables contain all groups."""
LOSSES = ("loss", "loss_label", "loss_soft_target", "loss_feature")
DEEPEST = "deepest_top1"

Series = tuple[str, SeedGroup, str, str]
"""A line's label, group, split and metric."""


def render_run_page(runs: Sequence[RunFiles]) -> str:
    """Return the page of at least one run."""
    groups, is_one = group_by_config(runs), len(runs) == 1
    charted = _charted_groups(groups)
    parts: list[tuple[str, str, Html]] = [
        ("runs", "Runs", _runs(runs)),
        ("made", "Command, config and environment", provenance_section(runs[0]) if is_one else Html("")),
        ("test", "Test accuracy", _test_table(groups)),
        ("curves", "Learning curves", join_markup(*_curves(groups, charted))),
        *(
            _single_run_parts(runs[0])
            if is_one
            else [("exits", "Early exits", join_markup(*compare_early_exits(charted)))]
        ),
        ("speed", "Throughput", join_markup(*throughput_charts(charted, runs))),
        ("course", "Attempts", join_markup(*map(attempt_history, runs)) if len(runs) <= MAX_SERIES else Html("")),
        (
            "config",
            "Commands and configs",
            Html("") if is_one else join_markup(*provenance_of_runs(groups, runs, MAX_SERIES)),
        ),
    ]
    sections = [PageSection(key, title, content) for key, title, content in parts if content]
    title = f"Run {runs[0].name}" if is_one else f"{len(runs)} runs"
    return render_page(title, _lead(runs), sections)


def _single_run_parts(run: RunFiles) -> list[tuple[str, str, Html]]:
    """Return the sections that only the page of a single run has."""
    split = next((split for split in ("test", "valid") if split in run.evaluations), None)
    evaluation: Content = run.evaluations.get(split, {}) if split else {}
    classes = evaluation.get("classes", ())
    suffix = f" ({split})" if split else ""
    sections: list[tuple[str, str, Callable[[], Html]]] = [
        ("calibration", f"Calibration{suffix}", lambda: calibration_section(evaluation)),
        ("confusion", f"Confusion{suffix}", lambda: confusion_section(evaluation, classes)),
        ("attention", "Attention masks", lambda: attention_section(run, classes)),
        ("agreement", f"Agreement of heads{suffix}", lambda: agreement_section(evaluation, run)),
        ("exits", "Early exits", lambda: join_markup(*early_exit_charts(run))),
    ]
    return [(key, title, render()) for key, title, render in sections]


def _lead(runs: Sequence[RunFiles]) -> str:
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
    state = counts if len(runs) > 1 else states[0]
    methods = ", ".join(dict.fromkeys(f"{run.config.get('method')} on {_data(run)}" for run in runs))
    return f"{methods} · {state}"


def _data(run: RunFiles) -> str:
    return str(run.config.get("data", {}).get("name", "?"))


def _runs(runs: Sequence[RunFiles]) -> Html:
    header = ("run", "state", "seed", "step", "workers", "attempts", "time", "images/s", DEEPEST)
    causes = [paragraphs(f"{run.name}: {run.outcome['cause']}") for run in runs if run.outcome.get("cause")]
    return join_markup(table(header, [_run_row(run) for run in runs]), *causes)


def _run_row(run: RunFiles) -> list[str]:
    last = run.records[-1] if run.records else {}
    workers = run.attempts[-1].get("workers", len(run.workers)) if run.attempts else len(run.workers)
    speeds = [record["images_per_s"] for record in run.records_of_split("train") if "images_per_s" in record]
    speed = f"{sorted(speeds)[len(speeds) // 2]:.0f}" if speeds else MISSING
    evaluated = run.records_of_split("test") or run.records_of_split("valid")
    top1 = evaluated[-1].get(DEEPEST) if evaluated else None
    time = format_duration(last["time"]) if "time" in last else MISSING
    steps = str(last.get("step", 0))
    cells = [run.name, run.state, str(run.config.get("seed")), steps, str(workers), str(len(run.attempts)), time, speed]
    return [*cells, format_metric(DEEPEST, top1)]


def _test_table(groups: Sequence[SeedGroup]) -> Html:
    """Return a table of each head by group: the mean over seeds, or a single run's 95 % interval over images."""
    rows = [row for group in groups for row in _test_rows(group)]
    header = ("config", "head", "top-1", "95 % interval", "deviation", "calibration error", "runs")
    return join_markup(table(header, rows), paragraphs(_SPREAD)) if rows else Html("")


_SPREAD = (
    "Last evaluation of the test split; with several seeds their mean, Student's t interval, and standard deviation in "
    "percentage points. The interval of a single run (Wilson) covers only the finite number of test images, not the "
    "variation over seeds."
)


def _test_rows(group: SeedGroup) -> Iterator[list[str]]:
    lasts = [run.records_of_split("test")[-1] for run in group.runs if run.records_of_split("test")]
    names = [name for name in (lasts[0] if lasts else {}) if name.endswith("_top1")]
    for name in names:
        values, head = [last[name] for last in lasts if name in last], name.removesuffix("_top1")
        errors = [error for run in group.runs if (error := calibration_error(run, head)) is not None]
        calibration_text = f"{100 * mean(errors):.2f} %" if errors else MISSING
        spread = _seed_interval(values) if len(values) > 1 else _image_interval(group.runs[0], values[0])
        yield [group.label, head, format_metric(name, mean(values)), *spread, calibration_text, str(len(values))]


def _seed_interval(values: Sequence[float]) -> tuple[str, str]:
    deviation = stdev(values)
    half = student_t_quantile(len(values) - 1) * deviation / len(values) ** 0.5
    return _format_interval(mean(values) - half, mean(values) + half), f"{100 * deviation:.2f}"


def _image_interval(run: RunFiles, share: float) -> tuple[str, str]:
    samples = sum(map(sum, run.evaluations.get("test", {}).get("confusion", ())))
    return (_format_interval(*wilson_interval(share, samples)) if samples else MISSING), MISSING


def _format_interval(low: float, high: float) -> str:
    """Format an interval, clipped to [0, 1]: Student's t interval can exceed it."""
    return f"{100 * max(0.0, low):.2f} to {100 * min(1.0, high):.2f}"


def _curves(groups: Sequence[SeedGroup], charted: Sequence[SeedGroup]) -> Iterator[Html]:
    """Yield the learning curves: of one config all metrics by step; of several by epoch, as their steps may differ."""
    if len(charted) < len(groups):
        yield paragraphs(f"The {len(charted)} of {len(groups)} configs with the highest accuracy.")
    if any(len(group.runs) > 1 for group in charted):
        yield paragraphs("Lines are means over seeds; bands show the minimum and maximum.")
    losses = [("train", name) for name in LOSSES]
    if len(charted) == 1:
        yield from _chart(
            "Losses in training", "loss", [(name, charted[0], split, name) for split, name in losses], "step"
        )
        for split in ("valid", "test"):
            heads = _metrics(charted[0], split, "_top1")
            series = [(name.removesuffix("_top1"), charted[0], split, name) for name in heads]
            yield from _chart(f"Accuracy of each head, {split}", "top-1", series, "step")
        return
    accuracies = [(split, name) for split in ("valid", "test") for name in _metrics(charted[0], split, "_top1")]
    for split, name in (*losses, *accuracies):
        yield from _chart(f"{name}, {split}", name, [(group.label, group, split, name) for group in charted])


def _charted_groups(groups: Sequence[SeedGroup]) -> Sequence[SeedGroup]:
    def accuracy(group: SeedGroup) -> float:
        lasts = [
            records[-1]
            for run in group.runs
            if (records := run.records_of_split("test") or run.records_of_split("valid"))
        ]
        return max((last.get(DEEPEST, 0.0) for last in lasts), default=0.0)

    return sorted(groups, key=accuracy, reverse=True)[:MAX_SERIES] if len(groups) > MAX_SERIES else groups


def _metrics(group: SeedGroup, split: str, ending: str) -> list[str]:
    records = group.runs[0].records_of_split(split)
    return [name for name in (records[-1] if records else {}) if name.endswith(ending)]


def _chart(title: str, metric: str, series: Sequence[Series], x: str = "epoch") -> Iterator[Html]:
    """Yield a chart; nothing if each line has one point only, as for a test set evaluated once: see the tables."""
    lines = [line for label, group, split, name in series if (line := mean_line(label, group, split, name, x))]
    if any(len(line.points) > 1 for line in lines):
        percent = is_share(metric) or metric == "top-1"
        yield plot(title, Axis(x, integer=True), Axis(metric, percent=percent), lines=lines)
