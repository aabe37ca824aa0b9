"""A search at one moment: its trials, each of which is a run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.watch.run_view import RunView, run_view

TRIALS = "trials"


@dataclass(frozen=True)
class SweepView:
    path: str
    trials: tuple[RunView, ...]

    @property
    def is_over(self) -> bool:
        """A search may ask for another trial at any time: somebody who watches it ends that."""
        return False

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, those that run first."""
        states = [trial.state for trial in self.trials]
        return {state: states.count(state) for state in sorted(set(states), key=lambda state: state != "running")}

    def as_json(self) -> dict[str, Any]:
        trials = [{**asdict(trial), "workers": len(trial.workers)} for trial in self.trials]
        return {"kind": "sweep", "path": self.path, "counts": self.counts, "trials": trials}


def is_sweep(path: Path) -> bool:
    return (path / "space.yaml").is_file()


def sweep_view(path: Path) -> SweepView:
    folders = sorted(folder.parent for folder in (path / TRIALS).glob("*/config.yaml"))
    return SweepView(str(path), tuple(map(run_view, folders)))
