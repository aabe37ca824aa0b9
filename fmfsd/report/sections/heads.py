"""How sure and how right a run's heads are, what they confuse, where they agree, and what leaving early saves."""

from collections.abc import Iterator, Sequence

from fmfsd.report.charts.run_charts import Axis, Line, Point, plot
from fmfsd.report.format_numbers import shown_metric
from fmfsd.report.html.markup import Html, joined
from fmfsd.report.html.tables import paragraphs, table
from fmfsd.report.read_run import Content, RunFiles
from fmfsd.report.seed_groups import Group, mean_line


def calibration(found: Content) -> Html:
    """A reliability diagram of every head, and its expected calibration error."""
    heads = found.get("calibration", {})
    if not heads:
        return Html("")
    lines = [Line("as sure as right", [(0.0, 0.0), (1.0, 1.0)], "pale")]
    for name, each in heads.items():
        bins = zip(each["samples"], each["confidence"], each["top1"], strict=True)
        lines.append(Line(name, [(sure, right) for count, sure, right in bins if count], "series"))
    share = Axis("mean confidence of a bin", percent=True)
    seen = [line for line in lines if line.places]
    chart = plot("Accuracy by confidence", share, Axis("top-1", percent=True), lines=seen)
    rows = [(name, f"{100 * each['error']:.2f} %") for name, each in heads.items()]
    return joined(paragraphs(_ERROR), table(("head", "expected calibration error"), rows), chart)


_ERROR = (
    "How far confidence (the largest class probability) and accuracy are apart, the mean over samples in 15 bins of "
    "equal width. Under the pale line a head is surer than it is right."
)


def agreement(found: Content, run: RunFiles) -> Html:
    """Of how many samples two heads say the same, at the end and with the deepest over the training."""
    heads, shares = found.get("heads", ()), found.get("agreement", ())
    if len(heads) < 2:
        return Html("")
    rows = [(name, *(f"{100 * share:.2f} %" for share in row)) for name, row in zip(heads, shares, strict=True)]
    alone, split = Group(run.name, [run]), max(("valid", "test"), key=lambda split: len(run.split(split)))
    lines = [mean_line(name, alone, split, f"{name}_agreement", "step") for name in heads]
    known = [line for line in lines if line is not None]
    title = f"How often a head says what the deepest does, {split}"
    chart = plot(title, Axis("step", whole=True), Axis("agreement", percent=True), lines=known) if known else Html("")
    return joined(table(("head", *heads), rows), chart)


def calibration_error(run: RunFiles, head: str) -> float | None:
    """On the test split."""
    found: float | None = run.evaluations.get("test", {}).get("calibration", {}).get(head, {}).get("error")
    return found


def exits_beside(groups: Sequence[Group]) -> Iterator[Html]:
    """The test split's curves of several configs, each that of its first run that was asked for them."""
    found = [
        (group.label, next((run.exits["test"] for run in group.runs if "test" in run.exits), None)) for group in groups
    ]
    lines = [Line(label, _of_curve(each), "series") for label, each in found if each]
    if lines:
        title = "Accuracy and multiply-adds of early exits, test"
        yield plot(title, Axis("multiply-adds an image"), Axis("top-1", percent=True), lines=lines)


def _of_curve(found: Content, key: str = "cost", unit: float = 1.0) -> list[tuple[float, float]]:
    """Nothing of a time where the curve is from before these were kept."""
    return [(unit * point[key], point["top1"]) for point in found["curve"] if key in point]


def early_exits(run: RunFiles) -> Iterator[Html]:
    """Accuracy against multiply-adds and time, the measured settings marked."""
    for split, found in run.exits.items():
        yield paragraphs(_HOW_LEFT)
        yield _exit_chart(f"Accuracy and multiply-adds, {split}", Axis("multiply-adds an image"), found, "macs", "cost")
        yield _exit_chart(f"Accuracy and time, {split}", Axis("ms an image"), found, "seconds", "seconds", unit=1e3)
        yield _exit_table(found)


_HOW_LEFT = (
    "Named marks were measured. The line is what one threshold for all early heads comes to, from all images leaving "
    "at the first head to none leaving early, by what leaving at each head was measured to cost."
)


def _exit_chart(title: str, axis: Axis, found: Content, measured: str, of_curve: str, unit: float = 1.0) -> Html:
    """`measured` and `of_curve`: what the costs that `axis` shows are called in a setting and in the curve."""
    settings, alone = found["table"]["settings"], found["table"]["deepest_alone"]
    known = [(_thresholds(each, found), each["cost"][measured], each["top1"]) for each in settings]
    whole = ("deepest head alone", alone[measured], found["curve"][-1]["top1"])
    points = [Point(name, (unit * cost, top1), "best") for name, cost, top1 in (*known, whole)]
    places = _of_curve(found, of_curve, unit)
    lines = [Line("one threshold for all", places)] if places else []
    return plot(title, axis, Axis("top-1", percent=True), points=points, lines=lines)


def _exit_table(found: Content) -> Html:
    settings, alone = found["table"]["settings"], found["table"]["deepest_alone"]
    heads = list(found["table"]["if_all_leave"])
    rows = [_setting(each, found, heads, alone) for each in settings]
    header = ("sure from", "top-1", *heads, "multiply-adds", "of the deepest alone", "ms", "of the deepest alone's")
    return table(header, rows)


def _thresholds(setting: Content, found: Content) -> str:
    named = ", ".join(f"{threshold:.4g}" for threshold in setting["thresholds"])
    return f"{named} for {found['target']}" if setting["thresholds"] == found["chosen"] else named


def _setting(setting: Content, found: Content, heads: Sequence[str], alone: Content) -> list[str]:
    cost = setting["cost"]
    leaving = [f"{100 * setting['leaving'].get(head, 0):.1f} %" for head in heads]
    macs = [shown_metric("", cost["macs"]), f"{cost['macs'] / alone['macs']:.3f}"]
    times = [f"{1e3 * cost['seconds']:.3f}", f"{cost['seconds'] / alone['seconds']:.3f}"]
    return [_thresholds(setting, found), f"{100 * setting['top1']:.2f} %", *leaving, *macs, *times]
