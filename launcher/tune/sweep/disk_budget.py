"""Disk budget of a sweep: the space it needs, and which checkpoints are deleted when space runs out."""

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fmfsd.config import RunConfig
from fmfsd.errors import Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import free_space
from launcher.check.machine_checks import EXTRA_CHECKPOINTS, FREE_BYTES, checkpoint_bytes
from launcher.config.byte_sizes import format_size, format_size_rounded_down, format_size_rounded_up
from launcher.config.launch_config import TuneOptions
from launcher.resources.config_cost import Costs
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History, Trial
from launcher.tune.records.ledger import FactLog

LOGS_BYTES = 256 << 10
"""Size of a run's logs, metrics and other small files. Measured: 64 KiB after 27 epochs, 72 after two."""
BLOCK_BYTES = 512
"""Unit of `st_blocks`, in bytes."""


@dataclass(frozen=True)
class DiskNeeds:
    """Disk space of a sweep: `running_bytes` of checkpoints per running trial, `complete_bytes` per ended run."""

    concurrent: int
    best: int
    runs: int
    running_bytes: int
    complete_bytes: int

    @classmethod
    def estimate(
        cls, options: TuneOptions, *, concurrent: int, checkpoint_bytes: int, num_checkpoints: int
    ) -> "DiskNeeds":
        """Estimate the needs, with `num_checkpoints` newest checkpoints, the best one and one being written."""
        best = min(options.best, options.trials)
        runs = options.trials + (best + 1) * options.seeds
        return cls(
            concurrent,
            best,
            runs,
            checkpoint_bytes * (num_checkpoints + EXTRA_CHECKPOINTS),
            checkpoint_bytes * (num_checkpoints + 1),
        )

    @property
    def ended_bytes(self) -> int:
        """Bytes of ended runs and of all logs."""
        return self.best * self.complete_bytes + self.runs * LOGS_BYTES

    @property
    def total_bytes(self) -> int:
        return self.ended_bytes + self.concurrent * self.running_bytes

    def max_concurrent(self, limit: float) -> int:
        """Return how many trials can run concurrently within `limit` bytes."""
        return max(0, int((limit - self.ended_bytes) // max(1, self.running_bytes)))

    def __str__(self) -> str:
        running = f"{self.concurrent} at a time with up to {format_size(self.running_bytes)} of checkpoints each"
        return f"{running}, all checkpoints of the best {self.best}, and logs and metrics of {self.runs} runs"


@dataclass
class DiskBudget:
    """The disk budget of one sweep; the driver consults it before each trial and after each trial's end.

    Without a budget in `options` nothing is refused or deleted. Checkpoints of running and interrupted trials stay;
    of the ended trials, those that are not among the best lose their checkpoints while space is short.
    """

    sweep: SweepDir
    options: TuneOptions
    needs: DiskNeeds
    _ended: dict[int, int] = field(default_factory=dict)
    """Size of each ended trial in bytes, which does not change any more."""
    _largest: int = 0

    @classmethod
    def estimate(
        cls, sweep: SweepDir, options: TuneOptions, config: RunConfig, costs: Costs, *, concurrent: int
    ) -> "DiskBudget":
        """Estimate the needs from the base `config`; guess the size of a checkpoint if it is unknown."""
        keep = config.checkpoint.keep
        one = checkpoint_bytes(config, costs) or FREE_BYTES // (keep + EXTRA_CHECKPOINTS)
        return cls(
            sweep,
            options,
            DiskNeeds.estimate(options, concurrent=concurrent, checkpoint_bytes=one, num_checkpoints=keep),
        )

    def find_problems(self) -> Iterator[Problem]:
        """Yield a problem if the budget is too small for the sweep, or larger than the free space of the disk."""
        if self.options.disk_bytes is None:
            return
        budget, available = self.options.disk_bytes, self._available()
        if self.needs.total_bytes > min(budget, available):
            yield Problem(f"--disk-budget {format_size_rounded_down(budget)}", self._shortage(budget, available))
        elif budget > available:
            advice = f"free disk space, or set at most {format_size_rounded_down(available)}"
            yield Problem(
                f"--disk-budget {format_size_rounded_down(budget)}",
                f"only {format_size(available)} are available on the disk: {advice}",
            )

    def delete_checkpoints(self, history: History, ledger: FactLog) -> list[Trial]:
        """Delete checkpoints until the running and the next trials have room; return the trials that lost checkpoints.

        Raise OSError if the disk fails.
        """
        if self.options.disk_bytes is None:
            return []
        for trial in history.runs:
            if trial.is_checkpoint_deleted and trial.number not in self._ended:
                _delete(self.sweep.trial(trial.name))  # a kill may have come between the fact and the deletion
        freed = []
        for trial in _deletable(history):
            if self._missing_bytes(history, new_trials=self.needs.concurrent - len(history.unfinished)) <= 0:
                break
            if self._free(trial, history, ledger):
                freed.append(trial)
        return freed

    def delete_rerun_checkpoints(self, history: History) -> None:
        """Delete the checkpoints of completed runs with further seeds; nothing resumes from them."""
        if self.options.disk_bytes is not None:
            for confirmation in history.confirmations:
                _delete(self.sweep.trial(confirmation.name))

    def has_room_for_trial(self, history: History) -> bool:
        """Return whether one more trial has room, in addition to the unfinished ones."""
        return self._missing_bytes(history, new_trials=1) <= 0

    def explain_shortage(self, history: History) -> str:
        """Return a message why no trial can start."""
        missing = self._missing_bytes(history, new_trials=1)
        held = f"the sweep uses {format_size(self._held(history))}, none of which may be deleted"
        return f"no trial can start: {format_size(missing)} of disk space are missing; {held}"

    def _shortage(self, budget: float, available: float) -> str:
        is_disk = available < budget
        limit = min(budget, available)
        fits = self.needs.max_concurrent(limit)
        remedies = [f"free {format_size(self.needs.total_bytes - available)} more on the disk"] if is_disk else []
        remedies += (
            [f"set at least {format_size_rounded_up(self.needs.total_bytes)}"]
            if budget < self.needs.total_bytes
            else []
        )
        fewer = f", or run fewer at a time: --concurrent {fits}" if fits else ""
        needed = f"{self.needs} need about {format_size(self.needs.total_bytes)}"
        only = f", but only {format_size(available)} are available on the disk" if is_disk else ""
        return f"{needed}{only}: {' and '.join(remedies)}{fewer}"

    def _missing_bytes(self, history: History, *, new_trials: int) -> float:
        """Return the bytes missing for the unfinished and the new trials; 0 or less if there is room."""
        if self.options.disk_bytes is None:
            return -math.inf
        limit = min(self.options.disk_bytes, self._available(self._held(history)))
        each = max(self.needs.running_bytes + LOGS_BYTES, self._largest)
        growth = sum(max(0, each - self._size(trial)) for trial in history.unfinished)
        return self._held(history) + growth + max(0, new_trials) * each - limit

    def _held(self, history: History) -> int:
        return sum(map(self._size, history.runs)) + _bytes_in(self.sweep.path, without=self.sweep.trials)

    def _available(self, held: int | None = None) -> int:
        """Return the bytes that the disk has for this sweep: those in use by it and the free ones."""
        existing = next(parent for parent in (self.sweep.path, *self.sweep.path.parents) if parent.exists())
        return free_space(existing)[0] + (_bytes_in(self.sweep.path) if held is None else held)

    def _size(self, trial: Trial) -> int:
        if (known := self._ended.get(trial.number)) is not None:
            return known
        current = _bytes_in(self.sweep.trial(trial.name).path)
        self._largest = max(self._largest, current)
        if trial.state != "asked":
            self._ended[trial.number] = current
        return current

    def _free(self, trial: Trial, history: History, ledger: FactLog) -> bool:
        """Delete a trial's checkpoints, after the ledger fact: the ledger knows of every missing checkpoint.

        Return whether there were any.
        """
        run = self.sweep.trial(trial.name)
        if not (number := _bytes_in(run.checkpoints)):
            return False
        fact = {"trial": trial.number, "bytes": number}
        try:
            ledger.append_fact("freed", **fact)
        except OSError:  # a full disk has no room for the fact before the deletion
            _delete(run)
            ledger.append_fact("freed", **fact)
        history.add({"fact": "freed", **fact})
        _delete(run)
        self._ended.pop(trial.number, None)
        return True


def _deletable(history: History) -> Iterator[Trial]:
    """Yield ended trials that are not among the best: failed ones, then those stopped early, then the worst first."""
    yield from (trial for trial in history.runs if trial.state == "failed" and not trial.is_checkpoint_deleted)
    yield from (trial for trial in history.runs if trial.state == "pruned" and not trial.is_checkpoint_deleted)
    yield from (
        trial for trial in reversed(history.rank_trials()[history.options.best :]) if not trial.is_checkpoint_deleted
    )


def _delete(run: RunDir) -> None:
    """Delete all checkpoints of a run. Rename the folder first, so that no reader finds a part of it. Skip links."""
    if not run.path.is_symlink() and not run.checkpoints.is_symlink():
        with suppress(FileNotFoundError):
            os.rename(run.checkpoints, run.path / f".tmp-doomed-{time.time_ns()}")
        for doomed in run.path.glob(".tmp-doomed-*"):
            shutil.rmtree(doomed)


def _bytes_in(folder: Path, *, without: Path | None = None) -> int:
    """Return the disk usage of a folder in bytes, without link targets and files that vanish during the scan."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
                if entry.is_dir(follow_symlinks=False) and (without is None or entry.path != str(without)):
                    total += _bytes_in(Path(entry.path))
    return total
