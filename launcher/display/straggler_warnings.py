"""Straggler detection: workers whose own computation takes much longer than the others', in consecutive windows."""

import time
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.run.straggler_detection import SLOW_FACTOR, compute_slowdowns
from fmfsd.system.atomic_files import read_json

POLL_EVERY_S = 2.0
"""Each poll reads one file per worker, possibly over a network."""
WINDOW_STEPS = 25
WINDOWS = 3


class StragglerDetector:
    """Detects stragglers of one attempt by `busy_s` in the progress files, a worker's time without waiting for others.

    Waiting is only measured where collectives block the host, as on CPUs.
    """

    def __init__(self, run: RunDir, attempt: int, num_workers: int) -> None:
        self._run, self._attempt, self._ranks = run, attempt, range(num_workers)
        self._before: dict[int, dict[str, Any]] = {}
        self._slow_windows = dict.fromkeys(self._ranks, 0)
        self._reported, self._next_poll = set[int](), 0.0

    def poll(self) -> list[str]:
        """Return the new warnings; each straggler is reported once."""
        if time.monotonic() < self._next_poll:
            return []
        self._next_poll = time.monotonic() + POLL_EVERY_S
        now = {rank: progress for rank in self._ranks if (progress := self._read(rank))}
        if len(now) < max(2, len(self._ranks)):
            return []
        if not self._before:
            self._before = now
        if any(now[rank]["step"] - self._before[rank]["step"] < WINDOW_STEPS for rank in self._ranks):
            return []
        busy = {rank: _busy_s_per_step(self._before[rank], now[rank]) for rank in self._ranks}
        self._before = now
        texts = (self._check_rank(rank, factor, now[rank]["host"]) for rank, factor in compute_slowdowns(busy).items())
        return [text for text in texts if text]

    def _check_rank(self, rank: int, factor: float, host: str) -> str:
        self._slow_windows[rank] = self._slow_windows[rank] + 1 if factor > SLOW_FACTOR else 0
        if self._slow_windows[rank] < WINDOWS or rank in self._reported:
            return ""
        self._reported.add(rank)
        return f"rank {rank} on {host} is a straggler: its own work takes {factor:.1f} times the workers' median"

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            progress = read_json(self._run.rank_progress(rank))
        except (OSError, ValueError):
            return None
        return progress if progress.get("attempt") == self._attempt and "busy_s" in progress else None


def _busy_s_per_step(before: dict[str, Any], now: dict[str, Any]) -> float:
    return float((now["busy_s"] - before["busy_s"]) / (now["step"] - before["step"]))
