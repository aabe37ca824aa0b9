"""What the commands show: long work on a terminal or as plain, rate-limited lines, and errors without tracebacks."""

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

PLAIN_EVERY_S = 5.0
_BUG = "probably a bug of fmfsd; run the command again with --debug, and report what it shows:"

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much (0: unknown)."""


@contextmanager
def progress_report(console: Console) -> Iterator[Report]:
    """A function to call with (what, done, total): a bar on a terminal, a line every few seconds elsewhere."""
    if not console.is_terminal:
        yield _plain(console)
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done)

        yield report


def _plain(console: Console) -> Report:
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_EVERY_S:
            last = time.monotonic()
            console.print(f"{what}: {done} of {total or '?'}")

    return report


def discard(stream: TextIO) -> None:
    """Let the rest of what is written to `stream`, whose reader is gone, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


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
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def errors_shown(*, debug: bool) -> Iterator[None]:
    """Errors as text on stderr and as an exit code; a traceback only with `debug`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        discard(sys.stdout)
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
