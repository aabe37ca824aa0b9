"""Hang detection: workers whose progress files stop changing. Clocks of different machines are never compared."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.plan.launch_plan import MIN_PHASE_TIMEOUT_S

POLL_EVERY_S = 0.5
COMPILE_S = 1800.0
"""Time limit for torch.compile, which reports no progress."""
_QUICK_STATES = ("train", "evaluate")
_EARLY_STATES = ("starting", "connect", "setup", "compile")
_ENDED_STATES = ("finished", "stopped")


@dataclass
class _WorkerState:
    """A worker's last progress file, and when its heartbeat and its progress last changed (monotonic clock)."""

    heartbeat_at: float
    moved_at: float
    progress: dict[str, Any] = field(default_factory=dict)

    def update(self, progress: dict[str, Any]) -> None:
        now = time.monotonic()
        if progress.get("beat") != self.progress.get("beat"):
            self.heartbeat_at = now
        if any(progress.get(name) != self.progress.get(name) for name in ("moves", "state")):
            self.moved_at = now
        self.progress = progress


@dataclass(frozen=True)
class Hang:
    """A hang, described by `text`.

    `hanging_ranks`: the ranks that cause it; empty if all workers wait for one another. `pids`: all workers', by rank.
    """

    text: str
    hanging_ranks: tuple[int, ...]
    pids: dict[int, int]


class HangDetector:
    """Detects hangs by the progress files of an attempt's workers."""

    def __init__(self, run: RunDir, attempt: int, num_workers: int, *, hang_timeout_s: float) -> None:
        self._run, self._attempt, self._timeout_s = run, attempt, hang_timeout_s
        now = time.monotonic()
        self._workers = {rank: _WorkerState(now, now) for rank in range(num_workers)}
        self._next_poll = 0.0

    def poll(self) -> Hang | None:
        """Return a hang once a worker has made no progress for the timeout, else None."""
        now = time.monotonic()
        if now < self._next_poll:
            return None
        self._next_poll = now + POLL_EVERY_S
        for rank, worker in self._workers.items():
            if progress := self._read(rank):
                worker.update(progress)
        overdue = [worker for worker in self._workers.values() if now - worker.moved_at > self._timeout_of(worker)]
        if overdue and not self._is_writable():
            for worker in self._workers.values():
                worker.heartbeat_at = worker.moved_at = now
            return None
        return self._describe_hang(now) if overdue else None

    def _is_writable(self) -> bool:
        """Return whether files can be written: on a full disk no worker can report progress, which is no hang."""
        probe = self._run.progress / "probe.json"
        try:
            write_json(probe, {"text": "x" * 4096}, durable=False)
            probe.unlink()
        except OSError:
            return False
        return True

    def has_reached_training(self) -> bool:
        """Return whether any worker has got as far as training."""
        files = (self._read(rank) for rank in self._workers)
        return any(progress is not None and progress["state"] not in _EARLY_STATES for progress in files)

    def find_rank(self, pid: int, ranks: Iterable[int]) -> int | None:
        """Return which of `ranks` is process `pid` and has not reported its end; None if there is none."""
        for rank in ranks:
            progress = self._read(rank) or self._workers[rank].progress
            if progress.get("pid") == pid and progress.get("state") not in _ENDED_STATES:
                return rank
        return None

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            progress = read_json(self._run.rank_progress(rank))
        except (OSError, ValueError):
            return None
        return progress if progress.get("attempt") == self._attempt else None

    def _timeout_of(self, worker: _WorkerState) -> float:
        state = worker.progress.get("state", "")
        if state in _ENDED_STATES:
            return float("inf")
        if state in _QUICK_STATES:
            return self._timeout_s
        return max(self._timeout_s, COMPILE_S if state == "compile" else MIN_PHASE_TIMEOUT_S)

    def _describe_hang(self, now: float) -> Hang:
        """Return the hang and the ranks that cause it.

        These are the workers without a heartbeat; else, of the workers that do not wait for others, those with the
        least progress; else none, as the network between the workers is to blame.
        """
        alive = {
            rank: worker for rank, worker in self._workers.items() if worker.progress.get("state") not in _ENDED_STATES
        }
        silent = [rank for rank, worker in alive.items() if now - worker.heartbeat_at > self._timeout_s / 2]
        busy = {
            rank: worker.progress.get("moves", 0)
            for rank, worker in alive.items()
            if not worker.progress.get("waiting")
        }
        blamed = silent or [rank for rank, moves in busy.items() if moves == min(busy.values())]
        pids = {rank: worker.progress["pid"] for rank, worker in alive.items() if "pid" in worker.progress}
        why = "has no heartbeat, like a stopped process" if silent else "waits for no other worker"
        since = f"for {self._timeout_s:g} s or more (--hang-timeout)"
        names = "; ".join(self._describe_worker(rank) for rank in blamed)
        network = f"all workers wait for one another, {since}: is the network between them cut?"
        return Hang(f"{names}: hangs, {since}; it {why}" if blamed else network, tuple(blamed), pids)

    def _describe_worker(self, rank: int) -> str:
        progress = self._workers[rank].progress
        if not progress:
            return f"rank {rank}, which has not started"
        pid, host, state, step = (progress[name] for name in ("pid", "host", "state", "step"))
        return f"rank {rank} (pid {pid} on {host}) in {state} after step {step}"
