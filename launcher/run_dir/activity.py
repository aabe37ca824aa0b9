"""Activity of a run or a sweep: whether a launch is working on it, as far as this host can know."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.config.plain_text import natural_sort_key
from launcher.run_dir.run_lock import Owner
from launcher.run_dir.sweep_dir import SweepDir

SILENCE_LIMIT_S = 150.0
"""Workers write twice a second. Between two attempts nothing is written for up to a minute; a save or a slow disk may
take as long."""


@dataclass(frozen=True)
class RunActivity:
    """Activity in a run directory. `claimed_at`: when the owner took the run; `ended_at`: when an outcome was written.

    Both are times of the file system's clock, 0 for never. `quiet_s`: seconds since the last change.
    """

    owner: Owner | None
    claimed_at: float
    ended_at: float
    quiet_s: float

    @classmethod
    def read(cls, run: RunDir) -> "RunActivity":
        """Return the activity of a run: from the owner's process on this host, else from the age of the run's files."""
        quiet_s = max(0.0, time.time() - max(_write_times(run)))
        return cls(Owner.of_run(run), _write_time(run.owner), _write_time(run.outcome), quiet_s)

    @property
    def is_under_way(self) -> bool:
        if self.owner is None:
            return False
        if self.owner.is_local:
            return self.owner.is_alive
        return not self.has_ended and self.quiet_s < SILENCE_LIMIT_S

    @property
    def has_ended(self) -> bool:
        """Return whether the owner has written an outcome."""
        return self.owner is not None and self.ended_at >= self.claimed_at

    @property
    def may_be_elsewhere(self) -> bool:
        """Return whether the owner is on another host, where it may be alive without writing."""
        return self.owner is not None and not self.owner.is_local and not self.has_ended

    def has_run_since(self, path: Path) -> bool:
        """Return whether the owner took the run after `path` was written."""
        return self.claimed_at >= _write_time(path)

    @property
    def owner_description(self) -> str:
        """Return the current or last owner, and how its state is known."""
        if self.owner is None:
            return "none yet"
        if self.owner.is_local or self.has_ended:
            return f"{self.owner}{'' if self.is_under_way else ', no longer running'}"
        return f"{self.owner}; state inferred from the run's files, unchanged for {format_age(self.quiet_s)}"


def find_runs(folder: Path) -> tuple[RunDir, ...]:
    """Return the run or sweep in `folder`, or the runs of an array in it. CheckError if there are none."""
    if (run := RunDir(folder)).config.exists():
        return (run,)
    runs = [RunDir(path.parent) for path in sorted(folder.glob("seed-*/config.yaml"), key=natural_sort_key)]
    if not runs:
        raise CheckError([Problem(str(folder), "neither a run directory nor a folder of an array's runs")])
    return tuple(runs)


def format_age(seconds: float) -> str:
    """Format a duration: `12 s`, `3 min`, `5 h` or `2 days`."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def seconds_since_write(path: Path) -> float | None:
    """Return the seconds since `path` was last written; None if it does not exist."""
    return max(0.0, time.time() - moment) if (moment := _write_time(path)) else None


def _write_times(run: RunDir) -> Iterator[float]:
    """Yield the modification times (Unix, s) of the files that an active run or sweep writes."""
    sweep = SweepDir(run.path)
    for path in (run.owner, *run.progress.glob("rank-*.json"), *run.attempts.glob("*.json"), sweep.ledger):
        yield _write_time(path)
    for path in sweep.trials.glob("*/progress/rank-0.json"):
        yield _write_time(path)


def _write_time(path: Path) -> float:
    """Return the modification time; 0 if the file does not exist."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
