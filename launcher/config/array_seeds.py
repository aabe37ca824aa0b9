"""Seeds of a Slurm job array: one run per seed, each in its own folder."""

import re
from dataclasses import dataclass

from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir

MAX_SEEDS = 10_000
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([1-9][0-9]{0,8}))?)?")


@dataclass(frozen=True)
class ArraySeeds:
    """Seeds of a job array. `max_concurrent`: the number of runs at the same time; None: no limit."""

    numbers: tuple[int, ...]
    max_concurrent: int | None = None

    @classmethod
    def parse(cls, text: str) -> "ArraySeeds":
        """Parse Slurm's array syntax: `0-4`, `1,5`, `0-8:2`, `0-9%2`. ConfigError for anything else."""
        listed, percent, limit = text.partition("%")
        parts = [_RANGE.fullmatch(part) for part in listed.split(",")]
        if all(parts) and (not percent or re.fullmatch(r"[1-9][0-9]{0,5}", limit)):
            ranges = [
                range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1)) for match in parts if match
            ]
            if all(ranges) and sum(map(len, ranges)) <= MAX_SEEDS:
                numbers = {number for one in ranges for number in one}
                return cls(tuple(sorted(numbers)), int(limit) if percent else None)
        raise ConfigError(
            [Problem(f"--array {text!a}", f"expected up to {MAX_SEEDS} seeds, as in 0-4, 1,5, 0-8:2 or 0-9%2")]
        )

    def __str__(self) -> str:
        return ",".join(map(str, self.numbers)) + (f"%{self.max_concurrent}" if self.max_concurrent else "")


def seed_run_dir(folder: RunDir, seed: int) -> RunDir:
    """Return the run directory of one seed in an array's folder."""
    return RunDir(folder.path / f"seed-{seed}")
