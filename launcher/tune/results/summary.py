"""The summary of a sweep, as the content of sweep.json."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from launcher.run_dir.manifest import installed_versions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History, Trial
from launcher.tune.results.importance import Importances
from launcher.tune.results.significance import compare_with_base
from launcher.tune.results.tap_effects import compute_tap_effects
from launcher.tune.space.load import Space

PACKAGES = ("fmfsd", "torch", "ray", "optuna", "numpy")


def build_summary(
    sweep: SweepDir, space: Space, history: History, importances: Sequence[Importances] | None = None
) -> dict[str, Any]:
    """Return the summary as JSON types without NaN; `importances` is None until the sweep ends."""
    ranked = history.rank_trials()
    content = {
        "best": _best(sweep, ranked[0]) if ranked else None,
        "folder": str(sweep.path),
        "options": asdict(history.options),
        "counts": _counts(history),
        "ranked": [trial.name for trial in ranked],
        "front": [trial.name for trial in history.pareto_front()],
        "confirmations": [asdict(each) for each in compare_with_base(history)],
        "unconfirmed": history.failed_reruns,
        "tested": {f"{number:04d}": metrics for number, metrics in history.test_metrics.items()},
        "importances": None if importances is None else [asdict(each) for each in importances],
        "effects": [asdict(each) for each in compute_tap_effects(space, history)],
        "space": {"config": space.config, "parameters": {each.key: each.describe() for each in space.parameters}},
        "versions": installed_versions(PACKAGES),
        "trials": [_trial(sweep, trial) for trial in history.trials.values()],
    }
    return {name: _finite(value) for name, value in content.items()}


def launch_command(sweep: SweepDir, trial: Trial) -> str:
    """Return the command that runs the trial again without the sweep."""
    changes = [part for override in trial.overrides for part in ("--set", override)]
    return shlex.join(["fmfsd-launch", str(sweep.config), *changes])


def _best(sweep: SweepDir, trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "values": trial.values,
        "metrics": trial.metrics,
        "path": str(sweep.trial(trial.name).path),
        "config": str(sweep.best),
        "command": shlex.join(["fmfsd-launch", str(sweep.best)]),
    }


def _counts(history: History) -> dict[str, int]:
    """Return the number of runs by state (`asked`: not ended), and of trials that repeat another config."""
    states = Counter(trial.state for trial in history.runs)
    by_state = {state: states[state] for state in ("finished", "pruned", "failed", "asked")}
    return {**by_state, "repeated": len(history.trials) - len(history.runs)}


def _trial(sweep: SweepDir, trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.name,
        "state": trial.state,
        "values": trial.values,
        "metrics": trial.metrics,
        "epochs": max(trial.reports, default=0),
        "seconds": trial.seconds,
        "cause": trial.cause,
        "repeats": None if trial.duplicate_of is None else f"{trial.duplicate_of:04d}",
        "has_checkpoints": not trial.is_checkpoint_deleted,
        "command": launch_command(sweep, trial),
        "reports": [{**metrics, "epoch": epoch} for epoch, metrics in sorted(trial.reports.items())],
    }


def _finite(content: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, with None."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
