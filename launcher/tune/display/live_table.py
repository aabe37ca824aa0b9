"""Live display of a sweep, from its files: a table on a terminal, rate-limited lines elsewhere."""

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
from launcher.config.plain_text import to_single_line
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.display.follow import RunningTrial, SweepFollower
from launcher.tune.display.formatting import (
    format_best,
    format_counts,
    format_metric,
    format_metrics,
    format_progress,
    format_reruns,
    format_time_left,
    format_trial_end,
    format_trial_restart,
    format_values,
)
from launcher.tune.records.history import History, Trial

READ_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 30.0
MAX_LINES_PER_UPDATE = 20
"""Maximum number of lines about ended trials per update."""
MAX_RUNNING_ROWS = 16
MAX_FRONT_ROWS = 20


class SweepDisplay:
    """Displays a sweep. Parameters in `hidden`, which never vary, are left out of a trial's values.

    `update` is cheap enough to be called ten times a second.
    """

    def __init__(
        self, console: Console, sweep: SweepDir, options: TuneOptions, *, hidden: Collection[str] = ()
    ) -> None:
        self._console, self._hidden = console, hidden
        self._follower = SweepFollower(sweep, options)
        self._best = _best(self._follower.history)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._read_at = self._printed_at = time.monotonic()
        self._last_progress = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError, KeyError):
            self._print_new_facts()
        if self._live:
            self._live.stop()

    def update(self) -> None:
        now = time.monotonic()
        if now - self._read_at < READ_INTERVAL_S:
            return
        self._read_at = now
        with suppress(Exception):  # an error of the display must never end a sweep
            self._refresh(now)

    def _refresh(self, now: float) -> None:
        self._print_new_facts()
        running = self._follower.running_trials()
        counts, left_s = self._follower.count_trials(running), self._follower.estimate_seconds_left(running)
        if self._live:
            self._live.update(self._render(running, counts, left_s), refresh=True)
        elif now - self._printed_at >= PLAIN_INTERVAL_S:
            self._printed_at = now
            self._print_progress(format_progress(self._follower.history, counts, left_s))

    def _print_progress(self, text: str) -> None:
        """Print the progress, unless it is the same as the last time."""
        if text != self._last_progress:
            self._last_progress = text
            self._print(text)

    def _print_new_facts(self) -> None:
        """Print lines for failed attempts and for new facts, of these at most MAX_LINES_PER_UPDATE."""
        for text in self._follower.failed_attempts():
            self._print(f"warning: {to_single_line(text)}")
        facts = self._follower.poll()
        if any(fact["fact"] == "ended" for fact in facts):
            self._best = _best(self._follower.history)
        lines = list(filter(None, map(self._line, facts)))
        for line in lines[:MAX_LINES_PER_UPDATE]:
            self._print(line)
        if omitted := len(lines[MAX_LINES_PER_UPDATE:]):
            self._print(f"({omitted} more have ended)")

    def _line(self, fact: Mapping[str, Any]) -> str:
        history = self._follower.history
        if fact["fact"] in ("ended", "repeated"):
            return format_trial_end(history.trials[fact["trial"]], history, self._best, self._hidden)
        if fact["fact"] == "confirmed":
            reached = format_metrics(fact["metrics"], history.options.metrics)
            return f"{fact['config']} with new seed {fact['seed']}: {reached}"
        if fact["fact"] == "restarted":
            return format_trial_restart(fact)
        return ""

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def _render(self, running: list[RunningTrial], counts: Mapping[str, int], left_s: float | None) -> Group:
        parts = (
            f"trials: {format_counts(counts)}",
            format_reruns(self._follower.history, counts),
            format_time_left(left_s),
        )
        lines = [Text("; ".join(filter(None, parts)))]
        if best := format_best(self._follower.history, self._best, self._hidden):
            lines.append(Text(f"best {best}"))
        more = len(running) - MAX_RUNNING_ROWS
        below = [Text(f"and {more} more running")] if more > 0 else []
        return Group(*lines, *([self._running_table(running)] if running else []), *below)

    def _running_table(self, running: list[RunningTrial]) -> Table:
        metrics = self._follower.history.options.metrics
        table = _table("trial", "values", "epoch", *metrics, "images/s")
        for each in running[:MAX_RUNNING_ROWS]:
            reports = each.trial.reports
            last = reports[max(reports)] if reports else {}
            epoch = f"{each.epoch}/{each.epochs}" if each.epochs else each.state
            speed = f"{each.images_per_s:.0f}" if each.images_per_s else ""
            reached = [format_metric(name, last[name]) if name in last else "" for name in metrics]
            _add_row(table, [each.trial.name, format_values(each.trial.values, self._hidden), epoch, *reached, speed])
        return table


def build_final_table(history: History, hidden: Collection[str] = ()) -> Table:
    """Return the table of the best trials, or of the Pareto front with several metrics: metrics and values."""
    metrics = history.options.metrics
    trials = history.rank_trials()[: history.options.best]
    if len(metrics) > 1:
        trials = history.rank_trials()[: min(len(history.pareto_front()), MAX_FRONT_ROWS)]
    test_names = [name.replace("valid/", "test/") for name in metrics]
    tested = [
        name for name in test_names if any(name in history.test_metrics.get(trial.number, {}) for trial in trials)
    ]
    table = _table("trial", *metrics, *tested, "values")
    for trial in trials:
        values = {**trial.metrics, **history.test_metrics.get(trial.number, {})}
        reached = [format_metric(name, values[name]) if name in values else "" for name in (*metrics, *tested)]
        _add_row(table, [trial.name, *reached, format_values(trial.values, hidden)])
    return table


def _table(*names: str) -> Table:
    table = Table()
    for name in names:
        table.add_column(Text(name), overflow="fold")
    return table


def _add_row(table: Table, cells: list[str]) -> None:
    """Add a row of plain text; a list in brackets is not rich markup."""
    table.add_row(*map(Text, cells))


def _best(history: History) -> Trial | None:
    ranked = history.rank_trials()
    return ranked[0] if ranked else None
