"""Differences between runs: config, software, hardware, data, final metrics."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.report.format_numbers import MISSING, format_metric, format_value
from fmfsd.report.read_run import SPLITS, Content, RunFiles, read_run
from fmfsd.report.sections.provenance import describe_hardware

METRICS = "metrics"


@dataclass(frozen=True)
class DifferenceRow:
    """The value of one setting or metric in each run; None for a run without it."""

    section: str
    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)

    def format_values(self) -> list[str]:
        return [self._shown(value) for value in self.values]

    def _shown(self, value: Any) -> str:
        if value is None:
            return MISSING
        return format_metric(self.name, value) if self.section == METRICS else format_value(value)


def compare_runs(folders: Sequence[Path]) -> list[DifferenceRow]:
    """Return all values of the runs, those that differ first. CheckError for a folder that is not a run."""
    by_run = [{(section, name): value for section, name, value in _values(read_run(each))} for each in folders]
    names = dict.fromkeys(name for values in by_run for name in values)
    rows = [DifferenceRow(*name, tuple(values.get(name) for values in by_run)) for name in names]
    return sorted(rows, key=lambda row: not row.differs)


def _values(run: RunFiles) -> Iterator[tuple[str, str, Any]]:
    for key, value in {**run.config_values, "seed": run.config.get("seed")}.items():
        yield "config", key, value
    last: Content = (run.manifest.get("launches") or [{}])[-1]
    for name, value in last.get("versions", {}).items():
        yield "software", name, value
    yield "software", "commit", last.get("commit")
    yield "software", "uncommitted changes", last.get("uncommitted")
    yield "hardware", "hosts", describe_hardware(last) or None
    yield "data", "SHA-256 of the index", run.manifest.get("data")
    yield "outcome", "state", run.state
    yield "outcome", "step", run.outcome.get("step")
    for split in SPLITS:
        for name, value in _final_metrics(run, split).items():
            yield METRICS, f"{split} {name}", value


def _final_metrics(run: RunFiles, split: str) -> Content:
    return run.outcome.get("metrics", {}).get(split, {})


def show_differences(folders: Sequence[Path]) -> None:
    """Print two tables: the values that differ, by run, then the others."""
    from rich.console import Console

    rows, console = compare_runs(folders), Console(file=sys.stdout, highlight=False)
    different = [row for row in rows if row.differs]
    console.print(_table("different", [folder.name for folder in folders], [(r, r.format_values()) for r in different]))
    console.print(_table("the same", ["value"], [(r, r.format_values()[:1]) for r in rows[len(different) :]]))


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[DifferenceRow, list[str]]]) -> Any:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("", title, *(Column(escape(name), overflow="fold") for name in columns))
    for number, (row, cells) in enumerate(rows):
        first = number == 0 or rows[number - 1][0].section != row.section
        if first:
            table.add_section()
        table.add_row(row.section if first else "", row.name, *map(escape, cells))
    return table


def print_differences_json(folders: Sequence[Path]) -> None:
    """Print the values as JSON: `different` and `same`, by section and name."""
    content: dict[str, Any] = {"runs": list(map(str, folders)), "different": {}, "same": {}}
    for row in compare_runs(folders):
        group, value = ("different", list(row.values)) if row.differs else ("same", row.values[0])
        content[group].setdefault(row.section, {})[row.name] = value
    print(json.dumps(content, indent=2))
