"""What a search shows while it runs, by reading files: a live table on a terminal, rate-limited lines elsewhere."""

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.config.launch_config import TuneOptions
from launcher.config.plain_text import in_a_line
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.display.follow import Running, SweepFollower
from launcher.tune.display.formatting import (
    best_text,
    counts_text,
    ended_text,
    left_text,
    metric_text,
    metrics_text,
    progress_text,
    reruns_text,
    restarted_text,
    values_text,
)
from launcher.tune.records.history import History, Trial

READ_EVERY_S = 0.25
PLAIN_EVERY_S = 30.0
LINES_A_LOOK = 20
"""Of trials that have ended; who wants all of them reads the table."""
RUNNING_SHOWN = 16
FRONT_SHOWN = 20


class SweepDisplay:
    """Follows the sweep from here on; keys that are `hidden`, as they never vary, are left out of a trial's values.

    `update` is cheap enough to be called ten times a second.
    """

    def __init__(
        self, console: Console, sweep: SweepDir, options: TuneOptions, *, hidden: Collection[str] = ()
    ) -> None:
        self._console, self._hidden = console, hidden
        self._follower = SweepFollower(sweep, options)
        self._best = _best(self._follower.history)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._read_at = self._said_at = time.monotonic()
        self._said = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError, KeyError):
            self._tell()
        if self._live:
            self._live.stop()

    def update(self) -> None:
        now = time.monotonic()
        if now - self._read_at < READ_EVERY_S:
            return
        self._read_at = now
        with suppress(Exception):  # what is shown must never end a search
            self._show(now)

    def _show(self, now: float) -> None:
        self._tell()
        running = self._follower.running()
        counts, left_s = self._follower.counts(running), self._follower.seconds_left(running)
        if self._live:
            self._live.update(self._picture(running, counts, left_s), refresh=True)
        elif now - self._said_at >= PLAIN_EVERY_S:
            self._said_at = now
            self._say_progress(progress_text(self._follower.history, counts, left_s))

    def _say_progress(self, text: str) -> None:
        """Nothing if it is the same as last time."""
        if text != self._said:
            self._said = text
            self._say(text)

    def _tell(self) -> None:
        """Of the trials that have ended since the last look; of many the first."""
        for text in self._follower.troubles():
            self._say(f"warning: {in_a_line(text)}")
        facts = self._follower.look()
        if any(fact["fact"] == "ended" for fact in facts):
            self._best = _best(self._follower.history)
        lines = list(filter(None, map(self._line, facts)))
        for line in lines[:LINES_A_LOOK]:
            self._say(line)
        if unsaid := len(lines[LINES_A_LOOK:]):
            self._say(f"({unsaid} more have ended)")

    def _line(self, fact: Mapping[str, Any]) -> str:
        history = self._follower.history
        if fact["fact"] in ("ended", "repeated"):
            return ended_text(history.trials[fact["trial"]], history, self._best, self._hidden)
        if fact["fact"] == "confirmed":
            reached = metrics_text(fact["metrics"], history.options.metrics)
            return f"{fact['config']} again with seed {fact['seed']}: {reached}"
        if fact["fact"] == "restarted":
            return restarted_text(fact)
        return ""

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def _picture(self, running: list[Running], counts: Mapping[str, int], left_s: float | None) -> Group:
        known = (f"trials: {counts_text(counts)}", reruns_text(self._follower.history, counts), left_text(left_s))
        lines = [Text("; ".join(filter(None, known)))]
        if best := best_text(self._follower.history, self._best, self._hidden):
            lines.append(Text(f"best {best}"))
        more = len(running) - RUNNING_SHOWN
        below = [Text(f"and {more} more run")] if more > 0 else []
        return Group(*lines, *([self._running_table(running)] if running else []), *below)

    def _running_table(self, running: list[Running]) -> Table:
        metrics = self._follower.history.options.metrics
        table = _table("trial", "values", "epoch", *metrics, "images/s")
        for one in running[:RUNNING_SHOWN]:
            reports = one.trial.reports
            last = reports[max(reports)] if reports else {}
            epoch = f"{one.epoch}/{one.epochs}" if one.epochs else one.state
            speed = f"{one.images_per_s:.0f}" if one.images_per_s else ""
            reached = [metric_text(name, last[name]) if name in last else "" for name in metrics]
            _add_row(table, [one.trial.name, values_text(one.trial.values, self._hidden), epoch, *reached, speed])
        return table


def final_table(history: History, hidden: Collection[str] = ()) -> Table:
    """The best trials, or of several metrics the front, with what they reached and were made of, the best first."""
    metrics = history.options.metrics
    shown = history.ranked()[: history.options.best]
    if len(metrics) > 1:
        shown = history.ranked()[: min(len(history.front()), FRONT_SHOWN)]
    wanted = [name.replace("valid/", "test/") for name in metrics]
    tested = [name for name in wanted if any(name in history.tested.get(trial.number, {}) for trial in shown)]
    table = _table("trial", *metrics, *tested, "values")
    for trial in shown:
        known = {**trial.metrics, **history.tested.get(trial.number, {})}
        reached = [metric_text(name, known[name]) if name in known else "" for name in (*metrics, *tested)]
        _add_row(table, [trial.name, *reached, values_text(trial.values, hidden)])
    return table


def _table(*names: str) -> Table:
    table = Table()
    for name in names:
        table.add_column(Text(name), overflow="fold")
    return table


def _add_row(table: Table, cells: list[str]) -> None:
    """As they are: a list in brackets is no markup."""
    table.add_row(*map(Text, cells))


def _best(history: History) -> Trial | None:
    ranked = history.ranked()
    return ranked[0] if ranked else None
