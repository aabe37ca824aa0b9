"""The seeds of a job array: a run for each, in a folder of its own."""

import re
from dataclasses import dataclass

from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir

MOST = 10_000
_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([1-9][0-9]{0,8}))?)?")


@dataclass(frozen=True)
class Seeds:
    """`at_once`: how many may run at the same time; None: all."""

    numbers: tuple[int, ...]
    at_once: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Seeds":
        """Slurm's own form: `0-4`, `1,5`, `0-8:2`, `0-9%2`. ConfigError for another."""
        listed, percent, limit = text.partition("%")
        parts = [_PART.fullmatch(part) for part in listed.split(",")]
        if all(parts) and (not percent or re.fullmatch(r"[1-9][0-9]{0,5}", limit)):
            ranges = [range(int(p[1]), int(p[2] or p[1]) + 1, int(p[3] or 1)) for p in parts if p]
            if all(ranges) and sum(map(len, ranges)) <= MOST:
                numbers = {number for each in ranges for number in each}
                return cls(tuple(sorted(numbers)), int(limit) if percent else None)
        raise ConfigError(
            [Problem(f"--array {text!a}", f"expected up to {MOST} seeds, as in 0-4, 1,5, 0-8:2 or 0-9%2")]
        )

    def __str__(self) -> str:
        return ",".join(map(str, self.numbers)) + (f"%{self.at_once}" if self.at_once else "")


def run_of(folder: RunDir, seed: int) -> RunDir:
    return RunDir(folder.path / f"seed-{seed}")
