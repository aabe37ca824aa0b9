"""Results of a drill: when a fault was noticed, what it cost, and whether it changed the result of the run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import list_positions
from fmfsd.system.atomic_files import read_json

CLOCK_METRICS = ("time", "images_per_s", "data_wait")


@dataclass(frozen=True)
class Result:
    """The result of one fault. Times in seconds from the fault; `lost_steps` were trained twice.

    `difference` describes how the run's result differs from that of the undisturbed run.
    """

    fault: str
    what: str = ""
    noticed_s: float | None = None
    back_s: float | None = None
    lost_steps: int | None = None
    difference: str = ""
    skipped: str = ""
    problem: str = ""

    @property
    def is_good(self) -> bool:
        return not self.problem and not self.difference

    @property
    def verdict(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        return self.problem or (f"NO: {self.difference}" if self.difference else "exactly")


def compare_runs(one: RunDir, other: RunDir) -> str:
    """Return how the results of two runs of one config differ, clocks aside; empty if they are bitwise equal."""
    if _records(one) != _records(other):
        return "the metrics differ"
    first, second = (read_json(_last_checkpoint(run) / "manifest.json")["sha256"] for run in (one, other))
    return ", ".join(f"{name} differs" for name in first if name != "state.json" and first[name] != second[name])


def table(results: Sequence[Result]) -> Table:
    rendered = Table("fault", "target", "noticed", "training", "steps lost", "resumed", box=box.SIMPLE)
    for each in results:
        seconds = (f"{value:.1f} s" if value is not None else "-" for value in (each.noticed_s, each.back_s))
        lost = "-" if each.lost_steps is None else str(each.lost_steps)
        rendered.add_row(each.fault, each.what, *seconds, lost, each.verdict)
    return rendered


def print_json(results: Sequence[Result]) -> None:
    print(json.dumps({"faults": [{**asdict(each), "good": each.is_good} for each in results]}))


def checkpoint_bytes(run: RunDir) -> int:
    """Return the size of the newest checkpoint."""
    return sum(path.stat().st_size for path in _last_checkpoint(run).iterdir())


def _records(run: RunDir) -> list[dict[str, Any]]:
    lines = map(json.loads, run.metrics.read_text("utf-8").splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCK_METRICS} for line in lines]


def _last_checkpoint(run: RunDir) -> Path:
    return run.checkpoints / list_positions(run.checkpoints)[0].folder_name
