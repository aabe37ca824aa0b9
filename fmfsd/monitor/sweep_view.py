"""Current state of a search: its trials, each of which is a run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.monitor.run_view import RunView, read_json_or_empty, read_run_view
from fmfsd.run.run_dir import RunDir

TRIALS, RUNNING = "trials", "running"


@dataclass(frozen=True)
class SweepView:
    """`state`: that of outcome.json, or running until the process that owns the search has written it."""

    path: str
    state: str
    trials: tuple[RunView, ...]

    @property
    def is_over(self) -> bool:
        return self.state != RUNNING

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state, running ones first."""
        states = [trial.state for trial in self.trials]
        return {state: states.count(state) for state in sorted(set(states), key=lambda state: state != RUNNING)}

    def to_dict(self) -> dict[str, Any]:
        trials = [{**asdict(trial), "workers": len(trial.workers)} for trial in self.trials]
        return {"kind": "sweep", "path": self.path, "state": self.state, "counts": self.counts, "trials": trials}


def is_sweep(path: Path) -> bool:
    """Return True for the folder of a search."""
    return (path / "space.yaml").is_file()


def read_sweep_view(path: Path) -> SweepView:
    """Read the view of the search in `path`."""
    folders = sorted(folder.parent for folder in (path / TRIALS).glob("*/config.yaml"))
    return SweepView(str(path), _state(RunDir(path.absolute())), tuple(map(read_run_view, folders)))


def _state(search: RunDir) -> str:
    """Return the state. An outcome older than the owner file is of an earlier start of a resumed search."""
    outcome, owner = read_json_or_empty(search.outcome), read_json_or_empty(search.owner)
    has_ended = outcome.get("time", 0.0) > owner.get("since", 0.0)
    return str(outcome["state"]) if has_ended else RUNNING
