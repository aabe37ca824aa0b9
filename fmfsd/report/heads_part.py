"""How sure and how right a run's heads are, what they confuse, where they agree, and what leaving early saves."""

from collections.abc import Iterator, Sequence

from fmfsd.report.charts import Axis, Line, Point, plot
from fmfsd.report.groups import Group, mean_line
from fmfsd.report.images import heat
from fmfsd.report.markup import Html, joined
from fmfsd.report.numbers import shown_metric
from fmfsd.report.run_files import Content, RunFiles
from fmfsd.report.tables import folded, paragraphs, table

MOST_PAIRS = 20


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


def confusion(found: Content, classes: Sequence[str]) -> Html:
    """Of the deepest head: the whole matrix as a picture, and the pairs that it takes for one another most."""
    matrix = found.get("confusion")
    if not matrix:
        return Html("")
    names = [classes[number] if number < len(classes) else f"class {number}" for number in range(len(matrix))]
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    alt = f"Confusion matrix of {len(matrix)} classes; the table beside it names the pairs that stand out"
    pairs = sorted(
        ((matrix[one][other] + matrix[other][one], one, other) for one in range(len(matrix)) for other in range(one)),
        reverse=True,
    )[:MOST_PAIRS]
    rows = [
        (names[one], names[other], str(both), f"{100 * shares[one][other]:.1f} %", f"{100 * shares[other][one]:.1f} %")
        for both, one, other in pairs
        if both
    ]
    header = ("class", "and", "confused", "first as second", "second as first")
    right = [f"{100 * row[number]:.2f} %" for number, row in enumerate(shares)]
    by_class = [(name, share, str(sum(row))) for name, share, row in zip(names, right, matrix, strict=True)]
    return joined(
        paragraphs("Rows are classes, columns what the deepest head says; each row adds up to 1, light is much."),
        heat(shares, alt, low=0.0, high=1.0, kind="matrix"),
        table(header, rows) if rows else paragraphs("No class is taken for another."),
        folded("Each class", table(("class", "top-1", "samples"), by_class)),
    )


def agreement(found: Content, run: RunFiles) -> Html:
    """Of how many samples two heads say the same, at the end and with the deepest over the training."""
    heads, shares = found.get("heads", ()), found.get("agreement", ())
    if len(heads) < 2:
        return Html("")
    rows = [(name, *(f"{100 * share:.2f} %" for share in row)) for name, row in zip(heads, shares, strict=True)]
    alone, split = Group(run.name, [run]), str(found["split"])
    lines = [mean_line(name, alone, split, f"{name}_agreement") for name in heads]
    known = [line for line in lines if line is not None]
    title = f"How often a head says what the deepest does, {split}"
    chart = plot(title, Axis("epoch", whole=True), Axis("agreement", percent=True), lines=known) if known else Html("")
    return joined(table(("head", *heads), rows), chart)


def early_exits(run: RunFiles) -> Iterator[Html]:
    """Accuracy against multiply-adds and time, the measured settings marked."""
    for split, found in run.exits.items():
        settings, alone = found["table"]["settings"], found["table"]["deepest_alone"]
        marked = [(_thresholds(each, found), each["top1"], each["cost"]) for each in settings]
        curve = Line("one threshold for all", [(point["cost"], point["top1"]) for point in found["curve"]])
        points = [Point(name, (cost["macs"], top1), "best") for name, top1, cost in marked]
        top1_axis, macs = Axis("top-1", percent=True), Axis("multiply-adds an image")
        yield plot(f"Accuracy and multiply-adds, {split}", macs, top1_axis, points=points, lines=[curve])
        times = [Point(name, (1e3 * cost["seconds"], top1), "best") for name, top1, cost in marked]
        whole = Point("deepest head alone", (1e3 * alone["seconds"], found["curve"][-1]["top1"]))
        yield plot(f"Accuracy and time, {split}", Axis("ms an image"), top1_axis, points=[*times, whole])
        heads = list(found["table"]["if_all_leave"])
        rows = [_setting(each, found, heads, alone) for each in settings]
        header = ("sure from", "top-1", *heads, "multiply-adds", "of the deepest alone", "ms", "of the deepest alone's")
        yield table(header, rows)


def _thresholds(setting: Content, found: Content) -> str:
    named = ", ".join(f"{threshold:.4g}" for threshold in setting["thresholds"])
    return f"{named} for {found['target']}" if setting["thresholds"] == found["chosen"] else named


def _setting(setting: Content, found: Content, heads: Sequence[str], alone: Content) -> list[str]:
    cost = setting["cost"]
    leaving = [f"{100 * setting['leaving'].get(head, 0):.1f} %" for head in heads]
    macs = [shown_metric("", cost["macs"]), f"{cost['macs'] / alone['macs']:.3f}"]
    times = [f"{1e3 * cost['seconds']:.3f}", f"{cost['seconds'] / alone['seconds']:.3f}"]
    return [_thresholds(setting, found), f"{100 * setting['top1']:.2f} %", *leaving, *macs, *times]
