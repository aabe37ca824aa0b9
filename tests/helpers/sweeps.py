"""Sweep folders written by hand, as a driver leaves them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmfsd.system.atomic_files import write_json
from launcher.config.launch_config import TuneOptions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.ledger import Ledger


class FakeSweep:
    """A sweep folder to which tests add facts and trial folders, as a driver and its trials would."""

    def __init__(self, path: Path, options: TuneOptions) -> None:
        self.dir = SweepDir(path)
        self.dir.coordinator_dir.create()
        self.dir.config.write_text("seed: 0\n")
        self.ledger = Ledger(self.dir.ledger)
        self.ledger.append_fact("began", options=asdict(options))

    def add_trial(self, number: int, **values: Any) -> None:
        self.ledger.append_fact("asked", trial=number, values=values, digest=f"d{number}", memory={})

    def add_repeat(self, number: int, of: int, **values: Any) -> None:
        self.ledger.append_fact("repeated", trial=number, of=of, values=values, digest=f"d{of}", memory={})

    def add_report(self, number: int, epoch: int, **metrics: float) -> None:
        self.ledger.append_fact("reported", trial=number, epoch=epoch, metrics=add_metric_prefix(metrics))

    def end_trial(self, number: int, state: str, cause: str = "", seconds: float = 60.0, **metrics: float) -> None:
        self.ledger.append_fact(
            "ended", trial=number, state=state, metrics=add_metric_prefix(metrics), cause=cause, seconds=seconds
        )

    def start_attempt(self, number: int, attempt: int = 1, **progress: Any) -> None:
        """Write a started attempt of a trial and, if `progress` is given, the progress file of its rank 0."""
        run = self.dir.trial(f"{number:04d}")
        run.create()
        run.config.write_text("seed: 0\n")
        content = {"attempt": attempt, "state": "running", "cause": "", "workers": 1, "started": 100.0, "ended": None}
        write_json(run.attempt(attempt), content)
        if progress:
            steps = {"step": 50, "total_steps": 100, "steps_per_epoch": 25, "images_per_s": 400.4}
            write_json(run.rank_progress(0), {"rank": 0, "attempt": attempt, "state": "train", **steps, **progress})

    def add_failed_attempt(self, number: int, attempt: int, cause: str) -> None:
        times = {"started": 100.0, "ended": 130.0}
        content = {"attempt": attempt, "state": "failed", "cause": cause, "workers": 1, **times}
        write_json(self.dir.trial(f"{number:04d}").attempt(attempt), content)


def add_metric_prefix(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics with the prefix of their group, for example valid/deepest_top1 and cost/train_macs."""
    return {f"{'cost' if name.endswith('macs') else 'valid'}/{name}": value for name, value in metrics.items()}
