"""A profile on one screen: key numbers, a table of the parts of a step, and a table of the slowest operators."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fmfsd.run.profile_record import COMMUNICATION, PARTS
from fmfsd.run.run_dir import RunDir
from launcher.config.byte_sizes import format_size
from launcher.diagnostics.profile.summary import Compute, Spread, Summary


def render(summary: Summary, run: RunDir, *, plain: bool) -> Iterator[RenderableType]:
    """Yield what to print; `plain` draws no lines, for a file."""
    for line in _numbers(summary):
        yield Text(line)
    yield _parts(summary, plain=plain)
    yield _operators(summary, plain=plain)
    yield Text(_explain_parts(summary))
    names = "rank-*.trace.json.gz" if summary.workers > 1 else run.profile_trace(0).name
    yield Text(f"{run.profile / names}: for ui.perfetto.dev or chrome://tracing")


def _numbers(summary: Summary) -> Iterator[str]:
    yield (
        f"step {_ms(summary.step_s)} ms (median of {summary.steps}; worst {_ms(summary.worst_step_s)}), "
        f"{summary.images_per_s:,.0f} images/s, data wait {summary.data_wait:.1%}, "
        f"peak memory {format_size(summary.peak_memory_bytes)}{' per worker' if summary.workers > 1 else ''}"
    )
    yield _describe_compute(summary.compute, summary)


def _describe_compute(compute: Compute | None, summary: Summary) -> str:
    if compute is None:
        return "compute: unknown, as the multiply-adds of an image are unknown"
    who = "this worker multiplies" if summary.workers == 1 else f"these {summary.workers} workers multiply"
    unit, size_of_one = ("TFLOP/s", 1e12) if compute.matrix_flops_per_s >= 1e12 else ("GFLOP/s", 1e9)
    reached, limit = (f"{rate / size_of_one:.3g} {unit}" for rate in (compute.flops_per_s, compute.matrix_flops_per_s))
    return f"compute: {reached}, {compute.share:.1%} of the {limit} at which {who} matrices ({summary.precision})"


def _parts(summary: Summary, *, plain: bool) -> Table:
    several = summary.workers > 1
    table = _table(plain, "part of a step", "ms", "share", *(("min ms", "max ms") if several else ()))
    for part in PARTS:
        table.add_row(part, *_cells(summary.parts[part], f"{summary.share(part):.1%}", several=several))
    table.add_row("step, profiled", *_cells(summary.divided_step_s, "", several=several))
    return table


def _cells(spread: Spread, share: str, *, several: bool) -> Sequence[str]:
    return [_ms(spread.median), share, *((_ms(spread.least), _ms(spread.most)) if several else ())]


def _operators(summary: Summary, *, plain: bool) -> Table:
    table = _table(plain, f"slowest operators{' of rank 0' if summary.workers > 1 else ''}", "ms", "calls", "part")
    for each in summary.operators:
        table.add_row(each.name.rpartition(": ")[2], _ms(each.seconds), f"{each.calls:g}", each.part)
    return table


def _explain_parts(summary: Summary) -> str:
    source = (
        "kernels on the GPU; other: no kernel is running" if summary.device == "cuda" else "the worker's main thread"
    )
    lines = [
        f"parts: time of {source}; means of {summary.steps} further steps, uncompiled and slowed down by the profiler"
    ]
    if summary.workers > 1:
        exposed, whole = summary.parts[COMMUNICATION].median, summary.communication_s.median
        lines.append("ms: median of the workers; communication: including the wait for other workers,")
        lines.append(f"of which {_ms(exposed)} of {_ms(whole)} ms are not overlapped with computation")
    return "\n".join(lines)


def _table(plain: bool, first: str, *columns: str) -> Table:
    table = Table(box=None if plain else box.SIMPLE, pad_edge=False)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="left" if name == "part" else "right")
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.{0 if seconds >= 1 else 1 if seconds >= 0.001 else 2}f}"
