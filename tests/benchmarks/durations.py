"""pytest plugin: wall and CPU seconds of a test run by folder, file and fixture.

pytest -n 2 -p tests.benchmarks.durations

Printed at the end of the run. CPU seconds are those of the test process and of all processes it started: where they are
fewer than the wall seconds, a test waits, and another test can run at the same time. The seconds of a fixture do not
include those of the fixtures it requests.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

_FILES, _FIXTURES = 25, 15


@dataclass
class Duration:
    """Seconds of a phase of a test or of a fixture, or their sums."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> "Duration":
        return cls(monotonic(), _cpu_seconds())

    def __add__(self, other: "Duration") -> "Duration":
        return Duration(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Duration") -> "Duration":
        return Duration(self.wall - other.wall, self.cpu - other.cpu)


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process, its living descendants, and the children they have reaped."""
    total = 0.0
    process = psutil.Process()
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class Recorder:
    """Records (kind, file, name, wall, cpu) of each phase and fixture, in a process that runs tests."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, float, float]] = []
        self._inner: list[Duration] = []

    def _record(self, kind: str, node: str, name: str, cost: Duration) -> None:
        self.rows.append((kind, node.partition("::")[0], name, cost.wall, cost.cpu))

    def _phase(self, item: pytest.Item, name: str) -> Iterator[Any]:
        before = Duration.now()
        try:
            return (yield)
        finally:
            self._record("phase", item.nodeid, name, Duration.now() - before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[Any]:
        return (yield from self._phase(item, "setup"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[Any]:
        return (yield from self._phase(item, "call"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[Any]:
        return (yield from self._phase(item, "teardown"))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
        before = Duration.now()
        self._inner.append(Duration())
        try:
            return (yield)
        finally:
            whole, inner = Duration.now() - before, self._inner.pop()
            if self._inner:
                self._inner[-1] += whole
            self._record("fixture", fixturedef.baseid or "pytest", fixturedef.argname, whole - inner)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["durations"] = self.rows


class Table:
    """Adds up the rows of all test processes and prints them, in the process that reports."""

    def __init__(self, recorder: Recorder) -> None:
        self._rows = recorder.rows

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._rows += [tuple(row) for row in getattr(node, "workeroutput", {}).get("durations", ())]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("wall and CPU seconds")
        terminalreporter.write_line("\n".join(render(self._rows)))


def render(rows: Iterable[tuple[str, str, str, float, float]]) -> list[str]:
    """Return the lines of three Markdown tables: by folder, file and fixture."""
    rows = list(rows)
    phases = [row for row in rows if row[0] == "phase"]
    fixtures = [row for row in rows if row[0] == "fixture"]
    return [
        *_table("folder", phases, lambda row: Path(row[1]).parts[1]),
        *_table("file", phases, lambda row: row[1], most=_FILES),
        *_table("fixture", fixtures, lambda row: f"{row[1]} {row[2]}", most=_FIXTURES),
    ]


def _table(
    what: str,
    rows: list[tuple[str, str, str, float, float]],
    key: Callable[[tuple[str, str, str, float, float]], str],
    most: int | None = None,
) -> list[str]:
    costs, counts = defaultdict[str, Duration](Duration), defaultdict[str, int](int)
    for row in rows:
        costs[key(row)] += Duration(row[3], row[4])
        counts[key(row)] += row[2] == "call" or row[0] == "fixture"
    names = sorted(costs, key=lambda name: -costs[name].wall)[:most]
    times = "tests" if what != "fixture" else "times"
    lines = [f"| {name} | {counts[name]} | {costs[name].wall:.1f} | {costs[name].cpu:.1f} |" for name in names]
    whole = sum(costs.values(), Duration())
    total = f"| all | {sum(counts.values())} | {whole.wall:.1f} | {whole.cpu:.1f} |"
    return ["", f"| {what} | {times} | wall s | CPU s |", "|---|---|---|---|", *lines, total]


def pytest_configure(config: pytest.Config) -> None:
    recorder = Recorder()
    config.pluginmanager.register(recorder, "durations-recorder")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(recorder), "durations-table")
