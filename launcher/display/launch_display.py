"""Display of a running launch from the run's files: a progress bar on a terminal, rate-limited lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.display.straggler_warnings import StragglerDetector
from launcher.run_dir.log_follower import LogFollower
from launcher.run_dir.record_follower import RecordFollower

READ_EVERY_S = 0.25
PLAIN_EVERY_S = 10.0
LOGS_EVERY_S = 1.0
LINES_PER_POLL = 50
"""Limit of log lines printed per poll; the rest is in the run directory."""


class RunDisplay:
    """Shows rank 0's progress, the evaluations of the next attempt, and new lines of `logs`.

    `update` is cheap enough to be called ten times a second.
    """

    def __init__(
        self,
        console: Console,
        run: RunDir,
        *,
        grace_s: float,
        num_workers: int = 1,
        logs: LogFollower | None = None,
    ) -> None:
        self._console, self._run, self._grace_s, self._logs = console, run, grace_s, logs
        self._bar = _BarAndLines(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, shown="")
        self._read_at = self._printed_at = self._logs_at = time.monotonic()
        self._records = RecordFollower(run)
        self._attempt, self._warnings = run.last_attempt() + 1, set[str]()
        self._stragglers = StragglerDetector(run, self._attempt, num_workers)
        self._newest, self._trained = "", dict[str, Any]()
        self._resume_reported, self._damaged = False, set(run.damaged_checkpoints())
        self._records.poll()  # skip the records of earlier attempts

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print_logs()
        with suppress(OSError, ValueError, KeyError):
            self._print_evaluations()
        self._bar.stop()

    def update(self) -> None:
        now = time.monotonic()
        if now - self._read_at < READ_EVERY_S:
            return
        self._read_at = now
        if now - self._logs_at >= LOGS_EVERY_S:
            self._logs_at = now
            self._print_logs()
        with suppress(Exception):  # an error of the display must never end a run
            self._show(now)

    def _show(self, now: float) -> None:
        self._print_evaluations()
        progress = self._read_progress()
        if progress is None:
            return
        self._print_resumption(progress)
        self._print_warnings(progress)
        if progress["state"] == "train":
            progress = {**self._trained, **progress}  # a new logging interval has no means yet
        measures = _render_measures(progress)
        self._bar.lines = [line for line in (_render_losses(progress), self._newest) if line]
        self._bar.update(
            self._task,
            description=_render_position(progress),
            completed=progress["step"],
            total=progress.get("total_steps"),
            shown=measures,
        )
        if not self._console.is_terminal and now - self._printed_at >= PLAIN_EVERY_S:
            self._printed_at = now
            left = self._time_left() if "total_steps" in progress else ""
            parts = [f"{_render_position(progress)} {measures}".rstrip(), _render_losses(progress), left]
            self._console.print(", ".join(filter(None, parts)), highlight=False)

    def _time_left(self) -> str:
        """Return the bar's estimate, from the speed of the last 30 s; "" without one."""
        seconds = self._bar.tasks[self._task].time_remaining
        return f"{timedelta(seconds=round(seconds))} left" if seconds else ""

    def _print_logs(self) -> None:
        """Print new log lines of workers on other machines, at most LINES_PER_POLL."""
        lines = []
        with suppress(OSError):
            lines = self._logs.poll() if self._logs else []
        for line in lines[:LINES_PER_POLL]:
            self._console.print(line, highlight=False, markup=False)
        if omitted := len(lines[LINES_PER_POLL:]):
            self._console.print(f"({omitted} more lines: fmfsd-launch logs {self._run.path})", markup=False)

    def _print_resumption(self, progress: dict[str, Any]) -> None:
        """Print once from which step the run resumes, and which damaged checkpoints were set aside."""
        if self._resume_reported or progress.get("went_on_after") is None:
            return
        self._resume_reported = True
        for path in sorted(set(self._run.damaged_checkpoints()) - self._damaged):
            self._console.print(f"a checkpoint is damaged and was set aside: {path}", highlight=False, markup=False)
        self._console.print(f"resuming after step {progress['went_on_after']}", highlight=False)

    def _print_warnings(self, progress: dict[str, Any]) -> None:
        """Print each warning once: rank 0's, stragglers, and a grace shorter than a step and a save, as measured."""
        warnings, takes_s = list(progress.get("warnings", ())), progress.get("stop_takes_s", 0.0)
        if takes_s > self._grace_s:
            warnings.append(f"a step and a save take more than --grace, {self._grace_s:g} s: a stop may lose work")
        for text in [*warnings, *self._stragglers.poll()]:
            if text not in self._warnings:
                self._warnings.add(text)
                self._console.print(f"warning: {text}", highlight=False, markup=False)

    def _read_progress(self) -> dict[str, Any] | None:
        """Return rank 0's progress, or None if there is none of this attempt yet."""
        try:
            progress = read_json(self._run.rank_progress(0))
        except (OSError, ValueError):
            return None
        return progress if progress.get("attempt") == self._attempt else None

    def _print_evaluations(self) -> None:
        """Print the evaluations that were recorded since the last poll."""
        for record in self._records.poll():
            if record["split"] == "train":
                self._trained = record
            else:
                tops = [
                    f"{name.removesuffix('_top1')} {value:.1%}"
                    for name, value in record.items()
                    if name.endswith("_top1")
                ]
                self._newest = f"{record['split']}: {', '.join(tops)}"
                self._console.print(f"epoch {record['epoch']} {self._newest}", highlight=False)


class _BarAndLines(Progress):
    """A progress bar with further lines below it."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(line, overflow="ellipsis", no_wrap=True) for line in self.lines)


def _render_losses(progress: dict[str, Any]) -> str:
    """Render every loss term."""
    return "  ".join(f"{name} {value:.3f}" for name, value in progress.items() if name.startswith("loss_"))


def _render_position(progress: dict[str, Any]) -> str:
    if "total_steps" not in progress:
        return str(progress["state"])
    per_epoch = progress["steps_per_epoch"]
    epochs = -(-progress["total_steps"] // per_epoch)
    epoch = max(progress["step"] - 1, 0) // per_epoch + 1
    return f"{progress['state']} epoch {epoch}/{epochs} step {progress['step']}/{progress['total_steps']}"


def _render_measures(progress: dict[str, Any]) -> str:
    parts = []
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("images_per_s"):
        parts.append(f"{progress['images_per_s']:.0f} images/s, data wait {progress['data_wait']:.1%}")
    if "evaluated" in progress:
        parts.append(f"{progress['evaluated']:.0%} evaluated")
    return " ".join(parts)


def build_heads_table(metrics: dict[str, dict[str, float]]) -> Table:
    """Build the table of the last accuracy of each head in each split, shallow to deep."""
    splits = [split for split in metrics if split != "train"]
    table = Table("head", *(f"{split} accuracy" for split in splits))
    names = [name for name in metrics[splits[0]] if name.endswith("_top1")] if splits else []
    for name in names:
        table.add_row(name.removesuffix("_top1"), *(f"{metrics[split][name]:.2%}" for split in splits))
    return table
