"""Throughput sections: images per second, stragglers, and the attempts of a run."""

from collections.abc import Iterator, Sequence

from fmfsd.report.charts.run_charts import Axis, Line, Point, plot
from fmfsd.report.format_numbers import MISSING, format_duration
from fmfsd.report.html.markup import Html, join_markup
from fmfsd.report.html.tables import paragraphs, table
from fmfsd.report.read_run import Content, RunFiles
from fmfsd.report.seed_groups import SeedGroup, mean_line
from fmfsd.run.straggler_detection import SLOW_FACTOR, compute_slowdowns

TIME_UNITS = ((2 * 3600, "hours", 3600.0), (300, "minutes", 60.0), (0, "seconds", 1.0))
"""Units of a time axis: from this number of seconds, name, seconds per unit."""


def throughput_charts(groups: Sequence[SeedGroup], runs: Sequence[RunFiles]) -> Iterator[Html]:
    """Yield charts of throughput and data wait by step, and a table of a single run's workers."""
    for name, title, axis in _MEASURED:
        lines = [line for group in groups if (line := mean_line(group.label, group, "train", name, "step"))]
        if lines:
            yield plot(title, Axis("step", integer=True), axis, lines=lines)
    if len(runs) == 1 and runs[0].workers:
        yield _workers(runs[0].workers)


_MEASURED = (
    ("images_per_s", "Images per second, all workers", Axis("images/s")),
    ("data_wait", "Share of time waiting for data", Axis("data wait", percent=True)),
)


def _workers(workers: Sequence[Content]) -> Html:
    """Return a table of the workers with stragglers highlighted."""
    own = compute_slowdowns({number: worker["busy_s"] for number, worker in enumerate(workers) if worker.get("busy_s")})
    slow = [number for number, factor in own.items() if factor >= SLOW_FACTOR]
    rows = [_worker(worker, own.get(number)) for number, worker in enumerate(workers)]
    header = ("rank", "host", "state", "step", "own time", "of the median", "peak memory", "")
    return join_markup(paragraphs(_LEGEND), table(header, rows, marked=slow))


_LEGEND = (
    "Own time is the time that a worker spends in steps, without waiting for others; all wait for the slowest worker. "
    f"A worker with at least {SLOW_FACTOR:g} times the median is a straggler."
)


def _worker(worker: Content, factor: float | None) -> list[str]:
    cells = [str(worker.get(name, "")) for name in ("rank", "host", "state", "step")]
    own = [MISSING, MISSING] if factor is None else [format_duration(worker["busy_s"]), f"{factor:.2f} x"]
    memory = f"{worker.get('peak_memory_bytes', 0) / 2**30:.2f} GiB"
    return [*cells, *own, memory, "straggler" if factor is not None and factor >= SLOW_FACTOR else ""]


def attempt_history(run: RunFiles) -> Html:
    """Return a chart of steps over time with the start and end of each attempt, and a table of the attempts."""
    started = run.manifest.get("started")
    if started is None or not run.attempts:
        return Html("")
    progress = [(record["time"], float(record["step"])) for record in run.records if "time" in record]
    marks = list(_marks(run.attempts, started, progress))
    duration = max((point[0] for point in (*progress, *(mark.xy for mark in marks))), default=0.0)
    name, seconds = next((name, seconds) for least, name, seconds in TIME_UNITS if duration >= least)
    points = [Point(mark.label, _scale_time(seconds, mark.xy), mark.kind) for mark in marks]
    lines = [Line("step", [_scale_time(seconds, point) for point in progress])] if progress else []
    chart = plot(f"Progress of {run.name}", Axis(name), Axis("step", integer=True), points=points, lines=lines)
    header = ("attempt", "workers", "started after", "duration", "ended", "cause")
    return join_markup(chart, table(header, [_attempt(attempt, started) for attempt in run.attempts]))


def _scale_time(unit: float, point: tuple[float, float]) -> tuple[float, float]:
    return point[0] / unit, point[1]


def _marks(attempts: Sequence[Content], started: float, progress: Sequence[tuple[float, float]]) -> Iterator[Point]:
    """Yield a point for the start and one for the end of each attempt; ends are highlighted."""
    for attempt in attempts:
        number = attempt.get("attempt")
        if (time := attempt.get("started")) is not None:
            yield Point(f"attempt {number} started", _point_at(time - started, progress))
        if (time := attempt.get("ended")) is not None:
            yield Point(f"attempt {number} {attempt.get('state')}", _point_at(time - started, progress), "best")


def _point_at(time: float, progress: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the time and the last step recorded until then."""
    return time, max((step for when, step in progress if when <= time), default=0.0)


def _attempt(attempt: Content, started: float) -> list[str]:
    start, end = attempt.get("started"), attempt.get("ended")
    duration = format_duration(end - start) if start is not None and end is not None else MISSING
    started_after = format_duration(start - started) if start is not None else MISSING
    cells = [str(attempt.get("attempt", "")), str(attempt.get("workers", ""))]
    return [*cells, started_after, duration, str(attempt.get("state") or MISSING), str(attempt.get("cause") or "")]
