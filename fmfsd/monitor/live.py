"""Shows a view again and again, until what it shows has ended or the watcher has seen enough."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fmfsd.monitor.run_view import run_view
from fmfsd.monitor.screen import View, line, screen
from fmfsd.monitor.sweep_view import is_sweep, sweep_view
from fmfsd.terminal import PLAIN_EVERY_S


def view_of(folder: Path) -> View:
    return sweep_view(folder) if is_sweep(folder) else run_view(folder)


def show_once(folder: Path, console: Console, *, as_json: bool) -> None:
    view = view_of(folder)
    print(json.dumps(view.as_json(), indent=2)) if as_json else console.print(screen(view))


def watch(folder: Path, console: Console, *, as_json: bool, every_s: float) -> None:
    """On a terminal one screen, else a line each PLAIN_EVERY_S at most; of JSON an object a line, each `every_s`."""
    if as_json:
        _repeat(folder, lambda view: print(json.dumps(view.as_json()), flush=True), every_s)
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            _repeat(folder, lambda view: live.update(screen(view), refresh=True), every_s)
    else:
        _repeat(folder, lambda view: console.print(line(view), highlight=False), max(every_s, PLAIN_EVERY_S))


def _repeat(folder: Path, show: Callable[[View], None], every_s: float) -> None:
    while True:
        view = view_of(folder)
        show(view)
        if view.is_over:
            return
        time.sleep(every_s)
