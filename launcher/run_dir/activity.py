"""Whether anybody works on a run or a search, as far as that can be known from here."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.config.plain_text import in_order
from launcher.run_dir.run_lock import Owner
from launcher.run_dir.sweep_dir import SweepDir

SILENT_S = 150.0
"""Workers write twice a second; between two attempts nobody writes for up to a minute, and a save or a slow disk may
take as long."""


@dataclass(frozen=True)
class Work:
    """When the owner `claimed` it and an outcome was written, `ended`: by the file system's clock, 0 if never.

    `quiet_s` is how long nothing has changed.
    """

    owner: Owner | None
    claimed: float
    ended: float
    quiet_s: float

    @classmethod
    def on(cls, run: RunDir) -> "Work":
        """By the owner's process if it is one of this host, else by the age of what it and its workers write."""
        quiet_s = max(0.0, time.time() - max(_moments(run)))
        return cls(Owner.of(run), _moment(run.owner), _moment(run.outcome), quiet_s)

    @property
    def is_under_way(self) -> bool:
        if self.owner is None:
            return False
        if self.owner.is_here:
            return self.owner.is_known_to_live
        return not self.has_ended and self.quiet_s < SILENT_S

    @property
    def has_ended(self) -> bool:
        """Whether its owner has left an outcome."""
        return self.owner is not None and self.ended >= self.claimed

    @property
    def may_be_elsewhere(self) -> bool:
        """Whether its owner is of another host, where it may live in silence."""
        return self.owner is not None and not self.owner.is_here and not self.has_ended

    def has_run_since(self, path: Path) -> bool:
        """Whether its owner has claimed it after `path` was written."""
        return self.claimed >= _moment(path)

    @property
    def who(self) -> str:
        """Who works on it, or was the last to, and how that is known."""
        if self.owner is None:
            return "nobody yet"
        if self.owner.is_here or self.has_ended:
            return f"{self.owner}{'' if self.is_under_way else ', gone now'}"
        return f"{self.owner}, judged from here by the run's files: nothing has changed for {age(self.quiet_s)}"


def existing_runs(folder: Path) -> tuple[RunDir, ...]:
    """Return the run or search in `folder`, or the runs of an array in it. CheckError if there are none."""
    if (run := RunDir(folder)).config.exists():
        return (run,)
    found = [RunDir(path.parent) for path in sorted(folder.glob("seed-*/config.yaml"), key=in_order)]
    if not found:
        raise CheckError([Problem(str(folder), "no run directory, and no folder of an array's runs")])
    return tuple(found)


def age(seconds: float) -> str:
    """As `12 s`, `3 min`, `5 h` or `2 days`."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def age_of(path: Path) -> float | None:
    """Seconds since it was last written; None if it is not there."""
    return max(0.0, time.time() - moment) if (moment := _moment(path)) else None


def _moments(run: RunDir) -> Iterator[float]:
    """When each of the files was last written that are written while a run, or a search, is under way; since 1970."""
    sweep = SweepDir(run.path)
    for path in (run.owner, *run.progress.glob("rank-*.json"), *run.attempts.glob("*.json"), sweep.ledger):
        yield _moment(path)
    for path in sweep.trials.glob("*/progress/rank-0.json"):
        yield _moment(path)


def _moment(path: Path) -> float:
    """0 if it is not there."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
