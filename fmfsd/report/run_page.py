"""The page of a run, or of several side by side, from their files."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from fmfsd.report.attention_part import attention
from fmfsd.report.charts import Axis, Line, Point, plot
from fmfsd.report.groups import Group, grouped, interval, mean_line
from fmfsd.report.heads_part import agreement, calibration, confusion, early_exits
from fmfsd.report.markup import Html, element, joined
from fmfsd.report.numbers import NOTHING, is_share, shown_duration, shown_metric, shown_value
from fmfsd.report.page import Section, page
from fmfsd.report.run_files import Content, RunFiles
from fmfsd.report.tables import code, folded, pairs, paragraphs, table

MOST_SERIES = 16
"""Of more groups only the best by the test or validation accuracy are drawn; all stand in the tables."""
LOSSES = ("loss", "loss_label", "loss_soft_target", "loss_feature")
DEEPEST = "deepest_top1"


def run_page(runs: Sequence[RunFiles]) -> str:
    """At least one."""
    groups = grouped(runs)
    parts: list[tuple[str, str, Html]] = [
        ("runs", "Runs", _runs(runs)),
        ("test", "On the test set", _tested(groups)),
        ("curves", "Learning curves", joined(*_curves(groups))),
        *(_of_one(runs[0]) if len(runs) == 1 else []),
        ("speed", "Throughput", joined(*_speed(groups, runs))),
        ("course", "Starts and stops", joined(*map(_course, runs)) if len(runs) <= MOST_SERIES else Html("")),
        ("config", "What was run", joined(*_what(groups, runs))),
    ]
    sections = [Section(key, title, inside) for key, title, inside in parts if inside]
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
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
    header = ("", "head", "top-1", "spread", "runs")
    return joined(table(header, rows), paragraphs(_SPREAD)) if rows else Html("")


_SPREAD = (
    "The last evaluation of the test split. Spread: of several seeds their standard deviation in percentage points; of "
    "one run the 95 % interval that its number of test images leaves (Wilson), which says nothing about other seeds."
)


def _tested_rows(group: Group) -> Iterator[list[str]]:
    lasts = [run.split("test")[-1] for run in group.runs if run.split("test")]
    names = [name for name in (lasts[0] if lasts else {}) if name.endswith("_top1")]
    for name in names:
        values = [last[name] for last in lasts if name in last]
        mean = sum(values) / len(values)
        spread = _deviation(values) if len(values) > 1 else _own_interval(group.runs[0], values[0])
        yield [group.label, name.removesuffix("_top1"), shown_metric(name, mean), spread, str(len(values))]


def _deviation(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return f"± {100 * variance**0.5:.2f}"


def _own_interval(run: RunFiles, share: float) -> str:
    samples = sum(map(sum, run.evaluations.get("test", {}).get("confusion", ())))
    if not samples:
        return NOTHING
    low, high = interval(share, samples)
    return f"{100 * low:.2f} to {100 * high:.2f}"


def _curves(groups: Sequence[Group]) -> Iterator[Html]:
    drawn = _drawn(groups)
    if len(drawn) < len(groups):
        yield paragraphs(f"Of {len(groups)} configs those {len(drawn)} that came to the highest accuracy.")
    if any(len(group.runs) > 1 for group in drawn):
        yield paragraphs("Lines are means over seeds, bands reach from the least to the most.")
    losses = [("train", name) for name in LOSSES]
    if len(drawn) == 1:
        yield from _chart("Losses in training", "loss", [(name, drawn[0], split, name) for split, name in losses])
        for split in ("valid", "test"):
            heads = _metrics(drawn[0], split, "_top1")
            of_heads = [(name.removesuffix("_top1"), drawn[0], split, name) for name in heads]
            yield from _chart(f"Accuracy of each head, {split}", "top-1", of_heads)
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


def _chart(title: str, metric: str, wanted: Sequence[tuple[str, Group, str, str]]) -> Iterator[Html]:
    """Nothing where each has one value, as on a test set that is looked at once: the tables have it."""
    lines = [line for label, group, split, name in wanted if (line := mean_line(label, group, split, name))]
    if any(len(line.places) > 1 for line in lines):
        percent = is_share(metric) or metric == "top-1"
        yield plot(title, Axis("epoch", whole=True), Axis(metric, percent=percent), lines=lines)


def _speed(groups: Sequence[Group], runs: Sequence[RunFiles]) -> Iterator[Html]:
    """Over steps, which are shorter than epochs."""
    for name, title in (("images_per_s", "Images a second, of all workers"), ("data_wait", "Share of time for data")):
        lines = [line for group in _drawn(groups) if (line := mean_line(group.label, group, "train", name, "step"))]
        if lines:
            yield plot(title, Axis("step", whole=True), Axis(name, percent=name == "data_wait"), lines=lines)
    if len(runs) == 1 and runs[0].workers:
        header = ("rank", "host", "state", "step", "busy", "behind the fastest", "peak memory")
        yield table(header, _workers(runs[0].workers))


def _workers(workers: Sequence[Content]) -> list[list[str]]:
    """Of those that compute for longer the others wait."""
    busy = [worker.get("busy_s") for worker in workers]
    known = [each for each in busy if each]
    least = min(known, default=0.0)
    rows = []
    for worker, each in zip(workers, busy, strict=True):
        behind = f"{100 * (each / least - 1):.1f} %" if each and least else NOTHING
        memory = f"{worker.get('peak_memory_bytes', 0) / 2**30:.2f} GiB"
        about = [str(worker.get(name, "")) for name in ("rank", "host", "state", "step")]
        rows.append([*about, shown_duration(each) if each else NOTHING, behind, memory])
    return rows


def _course(run: RunFiles) -> Html:
    """Steps over time, and on the same axis where it was started and how each start ended."""
    began = run.manifest.get("started")
    if began is None or not run.attempts:
        return Html("")
    reached = [(record["time"], float(record["step"])) for record in run.records if "time" in record]
    points = list(_marks(run.attempts, began, reached))
    chart = plot(
        f"Course of {run.name}", Axis("seconds"), Axis("step", whole=True), points=points, lines=_ways(reached)
    )
    header = ("start", "workers", "began after", "took", "ended", "cause")
    return joined(chart, table(header, [_attempt(attempt, began) for attempt in run.attempts]))


def _ways(reached: Sequence[tuple[float, float]]) -> list[Line]:
    return [Line("step", reached)] if reached else []


def _marks(attempts: Sequence[Content], began: float, reached: Sequence[tuple[float, float]]) -> Iterator[Point]:
    for attempt in attempts:
        for what, kind in (("started", "plain"), ("ended", "best")):
            if (time := attempt.get(what)) is not None:
                told = f"start {attempt.get('attempt')} {attempt.get('state') if what == 'ended' else 'began'}"
                at = time - began
                step = max((step for when, step in reached if when <= at), default=0.0)
                yield Point(told, (at, step), "best" if kind == "best" else "plain")


def _attempt(attempt: Content, began: float) -> list[str]:
    start, end = attempt.get("started"), attempt.get("ended")
    took = shown_duration(end - start) if start is not None and end is not None else NOTHING
    began_after = shown_duration(start - began) if start is not None else NOTHING
    about = [str(attempt.get("attempt", "")), str(attempt.get("workers", ""))]
    return [*about, began_after, took, str(attempt.get("state") or NOTHING), str(attempt.get("cause") or "")]


def _what(groups: Sequence[Group], runs: Sequence[RunFiles]) -> Iterator[Html]:
    for run in runs[:MOST_SERIES]:
        told = [code(yaml.safe_dump(dict(run.config), sort_keys=False)), pairs(_manifest(run))]
        yield folded(run.name, *map(_launch, run.manifest.get("launches", ())), *told)
    if len(runs) > MOST_SERIES:
        yield paragraphs(f"And of {len(runs) - MOST_SERIES} more runs, whose folders hold theirs.")
    if len(groups) > 1:
        yield element("h3", "Groups")
        yield table(("config", "runs"), [(group.label, ", ".join(run.name for run in group.runs)) for group in groups])


def _launch(launch: Content) -> Html:
    command = code(" ".join(map(str, launch.get("command", ()))))
    changes = ", ".join(map(str, launch.get("changes", ())))
    return joined(command, paragraphs(f"Changed: {changes}" if changes else ""))


def _manifest(run: RunFiles) -> list[tuple[str, str]]:
    last: dict[str, Any] = (run.manifest.get("launches") or [{}])[-1]
    versions = {name: value or "not installed" for name, value in last.get("versions", {}).items()}
    found = {"data (SHA-256 of its index)": run.manifest.get("data"), "commit": last.get("commit"), **versions}
    found["folder"] = str(run.run.path)
    return [(name, shown_value(value)) for name, value in found.items() if value is not None]
