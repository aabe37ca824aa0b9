"""Sweep directory: the paths of all files of a sweep."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmfsd.run.run_dir import RunDir


@dataclass(frozen=True)
class SweepDir:
    """Paths of a sweep's files. The coordinator's own files (lock, attempts, logs, stop request) have a run's names."""

    path: Path

    @classmethod
    def fresh(cls, parent: Path, space_name: str) -> "SweepDir":
        """Return a folder name that no sweep uses yet. Nothing is created."""
        return cls(RunDir.new(parent, space_name).path)

    @property
    def coordinator_dir(self) -> RunDir:
        return RunDir(self.path)

    @property
    def space(self) -> Path:
        """Return the copy of the search space, made when the sweep started."""
        return self.path / "space.yaml"

    @property
    def config(self) -> Path:
        """Return the base config as it was given; each trial overrides its values."""
        return self.path / "config.yaml"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def token(self) -> Path:
        """Return the file of the token that protects this sweep's Ray cluster; it exists while the sweep runs."""
        return self.path / "ray-token"

    @property
    def summary(self) -> Path:
        return self.path / "sweep.json"

    @property
    def table(self) -> Path:
        return self.path / "trials.csv"

    @property
    def best(self) -> Path:
        """Return the best trial's config, ready to launch."""
        return self.path / "best.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def has_report(self) -> bool:
        """Return whether there is an HTML report of the newest results."""
        with suppress(OSError):
            return self.report.stat().st_mtime_ns >= self.summary.stat().st_mtime_ns
        return False

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    def trial(self, name: str) -> RunDir:
        return RunDir(self.trials / name)


def is_sweep(folder: Path) -> bool:
    """Return whether `folder` is a sweep's directory, and not a run's."""
    return SweepDir(folder).ledger.exists()
