"""How fast a run went, who held it up, and how often it was started."""

from collections.abc import Iterator, Sequence

from fmfsd.report.charts.run_charts import Axis, Line, Point, plot
from fmfsd.report.format_numbers import NOTHING, shown_duration
from fmfsd.report.html.markup import Html, joined
from fmfsd.report.html.tables import paragraphs, table
from fmfsd.report.read_run import Content, RunFiles
from fmfsd.report.seed_groups import Group, mean_line
from fmfsd.run.slow_ranks import SLOW, factors

UNITS = ((2 * 3600, "hours", 3600.0), (300, "minutes", 60.0), (0, "seconds", 1.0))
"""From how many seconds on a time axis is in which unit."""


def speed(groups: Sequence[Group], runs: Sequence[RunFiles]) -> Iterator[Html]:
    """Over steps, which are shorter than epochs."""
    for name, title, axis in _MEASURED:
        lines = [line for group in groups if (line := mean_line(group.label, group, "train", name, "step"))]
        if lines:
            yield plot(title, Axis("step", whole=True), axis, lines=lines)
    if len(runs) == 1 and runs[0].workers:
        yield _workers(runs[0].workers)


_MEASURED = (
    ("images_per_s", "Images a second, of all workers", Axis("images/s")),
    ("data_wait", "Share of time for data", Axis("data wait", percent=True)),
)


def _workers(workers: Sequence[Content]) -> Html:
    """Stragglers stand out."""
    own = factors({number: worker["busy_s"] for number, worker in enumerate(workers) if worker.get("busy_s")})
    slow = [number for number, factor in own.items() if factor >= SLOW]
    rows = [_worker(worker, own.get(number)) for number, worker in enumerate(workers)]
    header = ("rank", "host", "state", "step", "own time", "of the median", "peak memory", "")
    return joined(paragraphs(_HOW_SLOW), table(header, rows, marked=slow))


_HOW_SLOW = (
    "Own time is what a worker computes, without waiting for others: who needs more of it is waited for. From "
    f"{SLOW:g} times the median on it is a straggler."
)


def _worker(worker: Content, factor: float | None) -> list[str]:
    about = [str(worker.get(name, "")) for name in ("rank", "host", "state", "step")]
    own = [NOTHING, NOTHING] if factor is None else [shown_duration(worker["busy_s"]), f"{factor:.2f} x"]
    memory = f"{worker.get('peak_memory_bytes', 0) / 2**30:.2f} GiB"
    return [*about, *own, memory, "straggler" if factor is not None and factor >= SLOW else ""]


def course(run: RunFiles) -> Html:
    """Steps over time, and on the same axis where it was started and how each start ended."""
    began = run.manifest.get("started")
    if began is None or not run.attempts:
        return Html("")
    reached = [(record["time"], float(record["step"])) for record in run.records if "time" in record]
    marks = list(_marks(run.attempts, began, reached))
    longest = max((place[0] for place in (*reached, *(mark.place for mark in marks))), default=0.0)
    name, seconds = next((name, seconds) for least, name, seconds in UNITS if longest >= least)
    points = [Point(mark.label, _in(seconds, mark.place), mark.kind) for mark in marks]
    lines = [Line("step", [_in(seconds, place) for place in reached])] if reached else []
    chart = plot(f"Course of {run.name}", Axis(name), Axis("step", whole=True), points=points, lines=lines)
    header = ("start", "workers", "began after", "took", "ended", "cause")
    return joined(chart, table(header, [_attempt(attempt, began) for attempt in run.attempts]))


def _in(unit: float, place: tuple[float, float]) -> tuple[float, float]:
    return place[0] / unit, place[1]


def _marks(attempts: Sequence[Content], began: float, reached: Sequence[tuple[float, float]]) -> Iterator[Point]:
    """Ends stand out, beginnings do not."""
    for attempt in attempts:
        number = attempt.get("attempt")
        if (time := attempt.get("started")) is not None:
            yield Point(f"start {number} began", _at(time - began, reached))
        if (time := attempt.get("ended")) is not None:
            yield Point(f"start {number} {attempt.get('state')}", _at(time - began, reached), "best")


def _at(time: float, reached: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """With the last step that was recorded until then."""
    return time, max((step for when, step in reached if when <= time), default=0.0)


def _attempt(attempt: Content, began: float) -> list[str]:
    start, end = attempt.get("started"), attempt.get("ended")
    took = shown_duration(end - start) if start is not None and end is not None else NOTHING
    began_after = shown_duration(start - began) if start is not None else NOTHING
    about = [str(attempt.get("attempt", "")), str(attempt.get("workers", ""))]
    return [*about, began_after, took, str(attempt.get("state") or NOTHING), str(attempt.get("cause") or "")]
