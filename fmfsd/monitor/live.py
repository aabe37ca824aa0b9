"""Live display of a run or a search, refreshed until it has ended or the user interrupts it."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fmfsd.monitor.run_view import read_run_view
from fmfsd.monitor.screen import View, render_line, render_screen
from fmfsd.monitor.sweep_view import is_sweep, read_sweep_view
from fmfsd.terminal import PLAIN_INTERVAL_S


def read_view(folder: Path) -> View:
    """Read the current view of the run or search in `folder`."""
    return read_sweep_view(folder) if is_sweep(folder) else read_run_view(folder)


def show_once(folder: Path, console: Console, *, as_json: bool) -> None:
    """Print the current view once, as a table or as JSON."""
    view = read_view(folder)
    print(json.dumps(view.to_dict(), indent=2)) if as_json else console.print(render_screen(view))


def watch(folder: Path, console: Console, *, as_json: bool, every_s: float) -> None:
    """Print the view every `every_s` seconds until the run or search has ended.

    On a terminal one live screen; otherwise one line at most every PLAIN_EVERY_S; with `as_json` one object per line.
    """
    if as_json:
        _repeat(folder, lambda view: print(json.dumps(view.to_dict()), flush=True), every_s)
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            _repeat(folder, lambda view: live.update(render_screen(view), refresh=True), every_s)
    else:
        _repeat(folder, lambda view: console.print(render_line(view), highlight=False), max(every_s, PLAIN_INTERVAL_S))


def _repeat(folder: Path, show: Callable[[View], None], every_s: float) -> None:
    while True:
        view = read_view(folder)
        show(view)
        if view.is_over:
            return
        time.sleep(every_s)
