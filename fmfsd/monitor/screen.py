"""Rendering of a run's or a search's view, as a screen or as one line."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fmfsd.monitor.run_view import RunView, Worker
from fmfsd.monitor.sweep_view import SweepView

View = RunView | SweepView
MAX_ROWS = 24
"""Rows of a table: of more workers the marked ones first, then by rank; of more trials the running, then the newest."""


def render_screen(view: View) -> RenderableType:
    """Render a view for a terminal."""
    return Group(*(_run(view) if isinstance(view, RunView) else _sweep(view)))


def render_line(view: View) -> str:
    """Render a view in one line, for a file or a pipe."""
    if isinstance(view, SweepView):
        counts = ", ".join(f"{count} {state}" for state, count in view.counts.items()) or "no trial yet"
        return f"search {view.state}: {counts}" if view.is_over else counts
    speed = next((f", {worker.images_per_s:.0f} images/s" for worker in view.workers if worker.images_per_s), "")
    marks = [f"rank {worker.rank} {_mark(worker)}" for worker in view.workers if _mark(worker)]
    return ", ".join([f"{view.state}, {_where(view)}{speed}", *marks])


def _run(view: RunView) -> Iterator[RenderableType]:
    saved = f", checkpoint after step {view.checkpoint_step}" if view.checkpoint_step is not None else ""
    yield Text(view.path, style="bold")
    yield Text(f"{view.state}, {_where(view)}, attempt {view.attempt}{saved}")
    if view.cause:
        yield Text(view.cause)
    if view.losses:
        yield Text("  ".join(f"{name} {value:.3f}" for name, value in view.losses.items()))
    for split, record in view.metrics.items():
        heads = [
            f"{name.removesuffix('_top1')} {value:.1%}" for name, value in record.items() if name.endswith("_top1")
        ]
        if heads:
            yield Text(f"{split}: {'  '.join(heads)}")
    yield _workers(view.workers)
    for text in dict.fromkeys(text for worker in view.workers for text in worker.warnings):
        yield Text(f"warning: {text}")


def _where(view: RunView) -> str:
    if not view.total_steps or not view.steps_per_epoch:
        return f"step {view.step}"
    epochs = -(-view.total_steps // view.steps_per_epoch)
    epoch = max(view.step - 1, 0) // view.steps_per_epoch + 1
    return f"epoch {epoch}/{epochs}, step {view.step}/{view.total_steps}"


def _workers(workers: Sequence[Worker]) -> Table:
    header = ("rank", "host", "state", "step", "images/s", "data wait", "memory", "heartbeat", "own time", "")
    table = Table(*header, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for worker in _select_workers(workers):
        speed = f"{worker.images_per_s:.0f}" if worker.images_per_s is not None else ""
        wait = f"{worker.data_wait:.1%}" if worker.data_wait is not None else ""
        memory = f"{worker.peak_memory_bytes / 2**30:.2f} GiB"
        own = f"{worker.own_time:.2f} x" if worker.own_time is not None else ""
        cells = (str(worker.rank), worker.host, worker.state, str(worker.step), speed, wait)
        table.add_row(*map(Text, cells), memory, _age(worker.heartbeat_age_s), own, _mark(worker))
    if more := len(workers) - MAX_ROWS:
        table.caption = f"and {more} more workers without a mark" if more > 0 else None
    return table


def _select_workers(workers: Sequence[Worker]) -> list[Worker]:
    marked = [worker for worker in workers if _mark(worker)]
    others = [worker for worker in workers if not _mark(worker)]
    return sorted([*marked, *others][:MAX_ROWS], key=lambda worker: worker.rank)


def _mark(worker: Worker) -> str:
    return "SILENT" if worker.is_silent else "straggler" if worker.is_straggler else ""


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _sweep(view: SweepView) -> Iterator[RenderableType]:
    yield Text(view.path, style="bold")
    yield Text(render_line(view))
    table = Table("trial", "state", "step", "images/s", "split", "deepest", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    running = [trial for trial in view.trials if trial.state == "running"]
    others = [trial for trial in view.trials if trial.state != "running"]
    selected = [*others, *running][-MAX_ROWS:]
    for trial in sorted(selected, key=lambda trial: trial.path):
        table.add_row(*map(Text, _trial(trial)))
    yield table
    if more := len(view.trials) - len(selected):
        yield Text(f"and {more} older trials that have ended")


def _trial(trial: RunView) -> tuple[str, ...]:
    speed = next((f"{worker.images_per_s:.0f}" for worker in trial.workers if worker.images_per_s), "")
    split = next((split for split in ("valid", "test") if split in trial.metrics), "")
    deepest = trial.metrics[split].get("deepest_top1") if split else None
    accuracy = f"{deepest:.1%}" if deepest is not None else ""
    return trial.path.rpartition("/")[2], trial.state, _where(trial), speed, split, accuracy
