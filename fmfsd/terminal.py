"""What the commands show: long work on a terminal or as plain, rate-limited lines, and errors without tracebacks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from fmfsd.errors import FmfsdError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

PLAIN_EVERY_S = 5.0

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


@contextmanager
def errors_shown(*, debug: bool) -> Iterator[None]:
    """Errors as text on stderr and as an exit code; a traceback only with `debug`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, FmfsdError)
        text = str(error) if known else f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
        print(text, file=sys.stderr)
        raise typer.Exit(error.exit_code if isinstance(error, FmfsdError) else 1) from error
