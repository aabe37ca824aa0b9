"""Sections on the heads: calibration, agreement, and early exits."""

from collections.abc import Iterator, Sequence

from fmfsd.report.charts.run_charts import Axis, Line, Point, plot
from fmfsd.report.format_numbers import format_metric
from fmfsd.report.html.markup import Html, join_markup
from fmfsd.report.html.tables import paragraphs, table
from fmfsd.report.read_run import Content, RunFiles
from fmfsd.report.seed_groups import SeedGroup, mean_line


def calibration_section(evaluation: Content) -> Html:
    """Return a reliability diagram of every head, and its expected calibration error."""
    heads = evaluation.get("calibration", {})
    if not heads:
        return Html("")
    lines = [Line("perfectly calibrated", [(0.0, 0.0), (1.0, 1.0)], "pale")]
    for name, each in heads.items():
        bins = zip(each["samples"], each["confidence"], each["top1"], strict=True)
        lines.append(Line(name, [(confidence, top1) for count, confidence, top1 in bins if count], "series"))
    share = Axis("mean confidence of a bin", percent=True)
    lines = [line for line in lines if line.points]
    chart = plot("Accuracy by confidence", share, Axis("top-1", percent=True), lines=lines)
    rows = [(name, f"{100 * each['error']:.2f} %") for name, each in heads.items()]
    return join_markup(paragraphs(_ERROR), table(("head", "expected calibration error"), rows), chart)


_ERROR = (
    "The expected calibration error is the mean difference between confidence (the largest class probability) and "
    "accuracy over samples, in 15 bins of equal width. Below the pale line a head is overconfident."
)


def agreement_section(evaluation: Content, run: RunFiles) -> Html:
    """Return how often two heads agree: all pairs at the end, and each head with the deepest over training."""
    heads, shares = evaluation.get("heads", ()), evaluation.get("agreement", ())
    if len(heads) < 2:
        return Html("")
    rows = [(name, *(f"{100 * share:.2f} %" for share in row)) for name, row in zip(heads, shares, strict=True)]
    group, split = (
        SeedGroup(run.name, [run]),
        max(("valid", "test"), key=lambda split: len(run.records_of_split(split))),
    )
    lines = [mean_line(name, group, split, f"{name}_agreement", "step") for name in heads]
    available = [line for line in lines if line is not None]
    title = f"Agreement of each head with the deepest, {split}"
    chart = (
        plot(title, Axis("step", integer=True), Axis("agreement", percent=True), lines=available)
        if available
        else Html("")
    )
    return join_markup(table(("head", *heads), rows), chart)


def calibration_error(run: RunFiles, head: str) -> float | None:
    """Return the expected calibration error of a head on the test split, or None."""
    error: float | None = run.evaluations.get("test", {}).get("calibration", {}).get(head, {}).get("error")
    return error


def compare_early_exits(groups: Sequence[SeedGroup]) -> Iterator[Html]:
    """Yield the early-exit curves of several configs on the test split, each of its first run with such a curve."""
    curves = [
        (group.label, next((run.early_exits["test"] for run in group.runs if "test" in run.early_exits), None))
        for group in groups
    ]
    lines = [Line(label, _curve_points(each), "series") for label, each in curves if each]
    if lines:
        title = "Accuracy and multiply-adds of early exits, test"
        yield plot(title, Axis("multiply-adds per image"), Axis("top-1", percent=True), lines=lines)


def _curve_points(exits: Content, key: str = "cost", unit: float = 1.0) -> list[tuple[float, float]]:
    """Return the points of a curve; none for a time that an old file does not contain."""
    return [(unit * point[key], point["top1"]) for point in exits["curve"] if key in point]


def early_exit_charts(run: RunFiles) -> Iterator[Html]:
    """Yield charts of accuracy over multiply-adds and time, with the measured settings marked, and a table."""
    for split, exits in run.early_exits.items():
        yield paragraphs(_EXIT_LEGEND)
        yield _exit_chart(
            f"Accuracy and multiply-adds, {split}", Axis("multiply-adds per image"), exits, "macs", "cost"
        )
        yield _exit_chart(f"Accuracy and time, {split}", Axis("ms per image"), exits, "seconds", "seconds", unit=1e3)
        yield _exit_table(exits)


_EXIT_LEGEND = (
    "Labelled points were measured. The line shows one threshold for all early heads, from all images leaving at the "
    "first head to none leaving early, computed from the measured cost of leaving at each head."
)


def _exit_chart(title: str, axis: Axis, exits: Content, setting_key: str, curve_key: str, unit: float = 1.0) -> Html:
    """Return a chart; `setting_key` and `curve_key`: keys of the cost on `axis` in a setting and in the curve."""
    settings, alone = exits["table"]["settings"], exits["table"]["deepest_alone"]
    results = [(_thresholds(each, exits), each["cost"][setting_key], each["top1"]) for each in settings]
    deepest = ("deepest head alone", alone[setting_key], exits["curve"][-1]["top1"])
    points = [Point(name, (unit * cost, top1), "best") for name, cost, top1 in (*results, deepest)]
    curve = _curve_points(exits, curve_key, unit)
    lines = [Line("one threshold for all", curve)] if curve else []
    return plot(title, axis, Axis("top-1", percent=True), points=points, lines=lines)


def _exit_table(exits: Content) -> Html:
    settings, alone = exits["table"]["settings"], exits["table"]["deepest_alone"]
    heads = list(exits["table"]["if_all_leave"])
    rows = [_setting(each, exits, heads, alone) for each in settings]
    header = (
        "threshold",
        "top-1",
        *heads,
        "multiply-adds",
        "ratio to the deepest alone",
        "ms",
        "ratio to the deepest alone's",
    )
    return table(header, rows)


def _thresholds(setting: Content, exits: Content) -> str:
    text = ", ".join(f"{threshold:.4g}" for threshold in setting["thresholds"])
    return f"{text} for {exits['target']}" if setting["thresholds"] == exits["chosen"] else text


def _setting(setting: Content, exits: Content, heads: Sequence[str], alone: Content) -> list[str]:
    cost = setting["cost"]
    leaving = [f"{100 * setting['leaving'].get(head, 0):.1f} %" for head in heads]
    macs = [format_metric("", cost["macs"]), f"{cost['macs'] / alone['macs']:.3f}"]
    times = [f"{1e3 * cost['seconds']:.3f}", f"{cost['seconds'] / alone['seconds']:.3f}"]
    return [_thresholds(setting, exits), f"{100 * setting['top1']:.2f} %", *leaving, *macs, *times]
