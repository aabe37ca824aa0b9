"""Terminal output: progress bars, or rate-limited lines without a terminal; errors without tracebacks."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import typer

from fmfsd.errors import FmfsdError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 5.0
_BUG = "probably a bug in fmfsd; run the command again with --debug and report its output:"

ProgressCallback = Callable[[str, int, int], None]
"""Callback for progress: task name, completed amount, total amount (0: unknown)."""


@contextmanager
def show_progress(console: Console) -> Iterator[ProgressCallback]:
    """Yield a function to call with (task, done, total): a bar on a terminal, a line every few seconds elsewhere."""
    if not console.is_terminal:
        yield _plain_reporter(console)
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total or None)
            bars.update(tasks[task], completed=done)

        yield report


def _plain_reporter(console: Console) -> ProgressCallback:
    last = time.monotonic()

    def report(task: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL_S:
            last = time.monotonic()
            console.print(f"{task}: {done} of {total or '?'}")

    return report


def discard_output(stream: TextIO) -> None:
    """Redirect `stream`, whose reader has closed it, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class BrokenPipeSafeStream:
    """A stream that discards all further output once its reader has closed it, like `| head` or a closed terminal.

    Output must never end a run.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard_output(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard_output(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def exit_on_error(*, debug: bool) -> Iterator[None]:
    """Turn errors of the block into text on stderr and an exit code; show a traceback only with `debug`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        discard_output(sys.stdout)
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, FmfsdError)
        text = str(error) if known else f"{_BUG}\n{type(error).__name__}: {error}"
        print(text, file=sys.stderr)
        raise typer.Exit(error.exit_code if isinstance(error, FmfsdError) else 1) from error
