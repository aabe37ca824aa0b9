"""Search histories built from ledger facts, over a small space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmfsd.config import dump_explicit
from launcher.config.launch_config import TuneOptions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History
from launcher.tune.space.load import Space, read_space

TOP1 = "valid/deepest_top1"
TAPS = "model.branches: {subset: {of: [stage1, stage2, stage3], min: 1}}"


def make_sweep(folder: Path, *parameters: str) -> tuple[SweepDir, Space]:
    """Create a sweep's folder with a space and a base config that holds out validation samples."""
    sweep = SweepDir(folder / "sweep")
    sweep.path.mkdir()
    sweep.space.write_text("\n  ".join(["config: cifar100-resnet18\nparameters:", *parameters]) + "\n")
    sweep.config.write_text(dump_explicit("cifar100-resnet18", ["data.valid=5200", "train.evaluate_test=false"]))
    return sweep, read_space(sweep.space)


def make_history(*trials: tuple[Mapping[str, Any], float], metric: str = TOP1, mode: str = "max") -> History:
    """Return a history of finished trials of one epoch, with these values and results."""
    history = History(TuneOptions(trials=len(trials), metrics=(metric,), modes=(mode,)))  # type: ignore[arg-type]
    for number, (values, result) in enumerate(trials):
        add_trial(history, number, values)
        end_trial(history, number, "finished", [{metric: result}])
    return history


def add_trial(history: History, number: int, values: Mapping[str, Any]) -> None:
    history.add({"fact": "asked", "trial": number, "values": values, "digest": str(number), "memory": {}})


def end_trial(
    history: History, number: int, state: str, reports: Sequence[Mapping[str, float]], cause: str = ""
) -> None:
    """Add the end of a trial that took a minute and made one epoch for each of `reports`."""
    for epoch, metrics in enumerate(reports, 1):
        history.add({"fact": "reported", "trial": number, "epoch": epoch, "metrics": metrics})
    last = reports[-1] if reports else {}
    history.add({"fact": "ended", "trial": number, "state": state, "metrics": last, "cause": cause, "seconds": 60.0})


def add_confirmations(history: History, config: str, results: Sequence[float], metric: str = TOP1) -> None:
    """Add confirmation runs of `config` with seeds 100, 101, ... and these results."""
    for seed, result in enumerate(results, 100):
        history.add({"fact": "confirmed", "config": config, "seed": seed, "metrics": {metric: result}})
