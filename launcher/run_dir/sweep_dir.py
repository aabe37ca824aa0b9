"""A sweep's folder: the one place that knows its file names."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmfsd.run.run_dir import RunDir


@dataclass(frozen=True)
class SweepDir:
    """What a sweep keeps. Its coordinator's own files (lock, attempts, logs, stop request) are those of a run."""

    path: Path

    @classmethod
    def fresh(cls, parent: Path, space_name: str) -> "SweepDir":
        """A name that no sweep has yet. Nothing is created."""
        return cls(RunDir.fresh(parent, space_name).path)

    @property
    def coordination(self) -> RunDir:
        return RunDir(self.path)

    @property
    def space(self) -> Path:
        """The search space as it was when the sweep began."""
        return self.path / "space.yaml"

    @property
    def config(self) -> Path:
        """The base config as it was given: what every trial's values are put over."""
        return self.path / "config.yaml"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def token(self) -> Path:
        """Without which nobody may talk to this sweep's Ray; there while it runs."""
        return self.path / "ray-token"

    @property
    def summary(self) -> Path:
        return self.path / "sweep.json"

    @property
    def table(self) -> Path:
        return self.path / "trials.csv"

    @property
    def best(self) -> Path:
        """The best trial's config, to be launched."""
        return self.path / "best.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def has_report(self) -> bool:
        """Whether there is a page of the newest results."""
        with suppress(OSError):
            return self.report.stat().st_mtime_ns >= self.summary.stat().st_mtime_ns
        return False

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    def trial(self, name: str) -> RunDir:
        return RunDir(self.trials / name)


def is_sweep(folder: Path) -> bool:
    """Whether it is a search's folder, and not a run's."""
    return SweepDir(folder).ledger.exists()
