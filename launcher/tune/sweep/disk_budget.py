"""Keeps a whole search within so many bytes: what it will need at least, and what may go when there is no room."""

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
from launcher.check.machine_checks import ALSO_KEPT, FREE_BYTES, checkpoint_bytes
from launcher.config.byte_sizes import at_least, at_most, size
from launcher.config.launch_config import TuneOptions
from launcher.resources.cost_probe import Costs
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History, Trial
from launcher.tune.records.ledger import Notebook

LOGS_BYTES = 256 << 10
"""A run's logs, metrics and other small files. Measured: 64 KiB after 27 epochs, 72 after two."""
BLOCK = 512
"""Bytes of what `st_blocks` counts."""


@dataclass(frozen=True)
class Needs:
    """What a search asks of a disk: its runs have up to `while_it_runs` bytes each, and `whole` ones at their end."""

    at_a_time: int
    best: int
    runs: int
    while_it_runs: int
    whole: int

    @classmethod
    def of(cls, options: TuneOptions, *, concurrent: int, checkpoint_bytes: int, keep: int) -> "Needs":
        """`keep` newest checkpoints, the best one, and while it runs the one that is being written."""
        best = min(options.best, options.trials)
        runs = options.trials + (best + 1) * options.seeds
        return cls(concurrent, best, runs, checkpoint_bytes * (keep + ALSO_KEPT), checkpoint_bytes * (keep + 1))

    @property
    def without_running(self) -> int:
        return self.best * self.whole + self.runs * LOGS_BYTES

    @property
    def total(self) -> int:
        return self.without_running + self.at_a_time * self.while_it_runs

    def fitting(self, limit: float) -> int:
        """How many may run at a time."""
        return max(0, int((limit - self.without_running) // max(1, self.while_it_runs)))

    def __str__(self) -> str:
        running = f"{self.at_a_time} at a time with up to {size(self.while_it_runs)} of checkpoints each"
        return f"{running}, the best {self.best} whole, and logs and metrics of {self.runs} runs"


@dataclass
class DiskBudget:
    """Of one search, whose driver asks before each trial and after each trial's end.

    Where `options` bound nothing, nothing is refused and nothing is freed. Trials that run or are interrupted keep
    what they have; of the others those that are not among the best lose their checkpoints while room is short.
    """

    sweep: SweepDir
    options: TuneOptions
    needs: Needs
    _ended: dict[int, int] = field(default_factory=dict)
    """What each trial that has ended takes, as that does not change."""
    _largest: int = 0

    @classmethod
    def of(
        cls, sweep: SweepDir, options: TuneOptions, config: RunConfig, costs: Costs, *, concurrent: int
    ) -> "DiskBudget":
        """`config`, what all trials are made from, stands for them; where its size is not known, it is a guess."""
        keep = config.checkpoint.keep
        one = checkpoint_bytes(config, costs) or FREE_BYTES // (keep + ALSO_KEPT)
        return cls(sweep, options, Needs.of(options, concurrent=concurrent, checkpoint_bytes=one, keep=keep))

    def refused(self) -> Iterator[Problem]:
        """Before the first trial: that the budget is too small, or more than the disk has."""
        if self.options.disk_bytes is None:
            return
        budget, there = self.options.disk_bytes, self._there()
        if self.needs.total > min(budget, there):
            yield Problem(f"--disk-budget {at_most(budget)}", self._too_little(budget, there))
        elif budget > there:
            advice = f"make room, or give it at most {at_most(there)}"
            yield Problem(f"--disk-budget {at_most(budget)}", f"only {size(there)} are free for it: {advice}")

    def tidy(self, history: History, ledger: Notebook) -> list[Trial]:
        """Free what may go until what runs, and what comes next, has room; the trials that have lost something.

        OSError if the disk is at fault.
        """
        if self.options.disk_bytes is None:
            return []
        for trial in history.runs:
            if trial.is_freed and trial.number not in self._ended:
                _remove(self.sweep.trial(trial.name))  # a kill may have come between the fact and this
        freed = []
        for trial in _may_go(history):
            if self._short(history, begins=self.needs.at_a_time - len(history.unfinished)) <= 0:
                break
            if self._free(trial, history, ledger):
                freed.append(trial)
        return freed

    def tidy_reruns(self, history: History) -> None:
        """The runs with further seeds whose results are known lose their checkpoints: nothing goes on from these."""
        if self.options.disk_bytes is not None:
            for confirmation in history.confirmations:
                _remove(self.sweep.trial(confirmation.name))

    def may_begin(self, history: History) -> bool:
        """Whether one more trial has room, beside those that are not at their end."""
        return self._short(history, begins=1) <= 0

    def trouble(self, history: History) -> str:
        """Why no trial may begin, for people."""
        lacks = self._short(history, begins=1)
        holds = f"the search holds {size(self._held(history))}, and nothing of that may go"
        return f"no trial is begun until there is room for {size(lacks)} more: {holds}"

    def _too_little(self, budget: float, there: float) -> str:
        is_disk = there < budget
        limit = min(budget, there)
        fits = self.needs.fitting(limit)
        ways = [f"make room for {size(self.needs.total - there)} more"] if is_disk else []
        ways += [f"give it {at_least(self.needs.total)}"] if budget < self.needs.total else []
        fewer = f", or run fewer at a time: --concurrent {fits}" if fits else ""
        found = f"{self.needs} come to about {size(self.needs.total)}"
        only = f", and only {size(there)} are free for it" if is_disk else ""
        return f"{found}{only}: {' and '.join(ways)}{fewer}"

    def _short(self, history: History, *, begins: int) -> float:
        """How many bytes are missing for what runs and for so many more; 0 or less if there is room."""
        if self.options.disk_bytes is None:
            return -math.inf
        limit = min(self.options.disk_bytes, self._there(self._held(history)))
        each = max(self.needs.while_it_runs + LOGS_BYTES, self._largest)
        growth = sum(max(0, each - self._size(trial)) for trial in history.unfinished)
        return self._held(history) + growth + max(0, begins) * each - limit

    def _held(self, history: History) -> int:
        return sum(map(self._size, history.runs)) + _bytes_in(self.sweep.path, without=self.sweep.trials)

    def _there(self, held: int | None = None) -> int:
        """What the disk has for this search: what it holds already, and what is free."""
        place = next(parent for parent in (self.sweep.path, *self.sweep.path.parents) if parent.exists())
        return free_space(place)[0] + (_bytes_in(self.sweep.path) if held is None else held)

    def _size(self, trial: Trial) -> int:
        if (known := self._ended.get(trial.number)) is not None:
            return known
        found = _bytes_in(self.sweep.trial(trial.name).path)
        self._largest = max(self._largest, found)
        if trial.state != "asked":
            self._ended[trial.number] = found
        return found

    def _free(self, trial: Trial, history: History, ledger: Notebook) -> bool:
        """The fact comes first, so that a checkpoint that is missing is always one that is known to be."""
        run = self.sweep.trial(trial.name)
        if not (number := _bytes_in(run.checkpoints)):
            return False
        fact = {"trial": trial.number, "bytes": number}
        try:
            ledger.note("freed", **fact)
        except OSError:  # a full disk has no room for a fact either, until this is gone
            _remove(run)
            ledger.note("freed", **fact)
        history.add({"fact": "freed", **fact})
        _remove(run)
        self._ended.pop(trial.number, None)
        return True


def _may_go(history: History) -> Iterator[Trial]:
    """Ended trials that are not among the best: the failed, those that were stopped early, then the worst first."""
    yield from (trial for trial in history.runs if trial.state == "failed" and not trial.is_freed)
    yield from (trial for trial in history.runs if trial.state == "pruned" and not trial.is_freed)
    yield from (trial for trial in reversed(history.ranked()[history.options.best :]) if not trial.is_freed)


def _remove(run: RunDir) -> None:
    """All checkpoints of a run; renamed first, so that nobody takes for whole what is half gone. Links stay."""
    if not run.path.is_symlink() and not run.checkpoints.is_symlink():
        with suppress(FileNotFoundError):
            os.rename(run.checkpoints, run.path / f".tmp-doomed-{time.time_ns()}")
        for doomed in run.path.glob(".tmp-doomed-*"):
            shutil.rmtree(doomed)


def _bytes_in(folder: Path, *, without: Path | None = None) -> int:
    """What a folder and all in it take on the disk, without what goes away meanwhile and what links lead to."""
    found = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                found += entry.stat(follow_symlinks=False).st_blocks * BLOCK
                if entry.is_dir(follow_symlinks=False) and (without is None or entry.path != str(without)):
                    found += _bytes_in(Path(entry.path))
    return found
