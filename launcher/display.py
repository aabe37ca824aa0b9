"""What a launch shows while it runs, by reading the run's files: a bar on a terminal, rate-limited lines elsewhere."""

import json
import os
import time
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fmfsd.files import read_json
from fmfsd.rundir import RunDir

READ_EVERY_S = 0.25
PLAIN_EVERY_S = 10.0


class SteadyStream:
    """A stream whose reader may go away, as `| head` and a closed terminal do: the rest of the words go nowhere.

    What is shown must never end a run.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return self._give_up()

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> int:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RunDisplay:
    """Follows rank 0's progress and the evaluations; `update` is cheap enough to be called ten times a second."""

    def __init__(self, console: Console, run: RunDir) -> None:
        self._console, self._run = console, run
        self._bar = Progress(
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
        self._read_at = self._said_at = time.monotonic()
        self._records_at = run.metrics.stat().st_size if run.metrics.exists() else 0
        self._since = time.time()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._evaluations()
        self._bar.stop()

    def update(self) -> None:
        now = time.monotonic()
        if now - self._read_at < READ_EVERY_S:
            return
        self._read_at = now
        self._evaluations()
        progress = self._progress()
        if progress is None:
            return
        shown = _shown(progress)
        self._bar.update(
            self._task,
            description=_where(progress),
            completed=progress["step"],
            total=progress.get("total_steps"),
            shown=shown,
        )
        if not self._console.is_terminal and now - self._said_at >= PLAIN_EVERY_S:
            self._said_at = now
            self._console.print(f"{_where(progress)} {shown}", highlight=False)

    def _progress(self) -> dict[str, Any] | None:
        """Rank 0's progress, unless it is an earlier attempt's."""
        try:
            progress = read_json(self._run.rank_progress(0))
        except (OSError, ValueError):
            return None
        return progress if progress["time"] >= self._since else None

    def _evaluations(self) -> None:
        """Print the evaluations that have come since the last look."""
        if not self._run.metrics.exists():
            return
        with self._run.metrics.open("rb") as file:
            file.seek(min(self._records_at, os.fstat(file.fileno()).st_size))
            *lines, rest = file.read().split(b"\n")
            self._records_at = file.tell() - len(rest)
        for record in map(json.loads, lines):
            if record["split"] != "train":
                tops = [
                    f"{name.removesuffix('_top1')} {value:.1%}"
                    for name, value in record.items()
                    if name.endswith("_top1")
                ]
                self._console.print(f"epoch {record['epoch']} {record['split']}: {', '.join(tops)}", highlight=False)


def _where(progress: dict[str, Any]) -> str:
    if "total_steps" not in progress:
        return str(progress["state"])
    per_epoch = progress["steps_per_epoch"]
    epochs = -(-progress["total_steps"] // per_epoch)
    epoch = max(progress["step"] - 1, 0) // per_epoch + 1
    return f"{progress['state']} epoch {epoch}/{epochs} step {progress['step']}/{progress['total_steps']}"


def _shown(progress: dict[str, Any]) -> str:
    parts = []
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("images_per_s"):
        parts.append(f"{progress['images_per_s']:.0f} images/s, data wait {progress['data_wait']:.1%}")
    return " ".join(parts)


def heads_table(metrics: dict[str, dict[str, float]]) -> Table:
    """The last accuracy of each head in each split, shallow to deep."""
    splits = [split for split in metrics if split != "train"]
    table = Table("head", *(f"{split} accuracy" for split in splits))
    names = [name for name in metrics[splits[0]] if name.endswith("_top1")] if splits else []
    for name in names:
        table.add_row(name.removesuffix("_top1"), *(f"{metrics[split][name]:.2%}" for split in splits))
    return table
