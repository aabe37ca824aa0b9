"""Names workers that hold up the others: those whose own work takes much longer, window after window."""

import time
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.run.slow_ranks import SLOW, factors
from fmfsd.system.atomic_files import read_json

LOOK_EVERY_S = 2.0
"""Every worker has a file to be read, perhaps over a network."""
WINDOW_STEPS = 25
WINDOWS = 3


class Stragglers:
    """Of one attempt. Reads the progress files, in which each worker tells its own time without waiting for others.

    Waiting is only known where a call to other workers is one of the host's, as on CPUs.
    """

    def __init__(self, run: RunDir, attempt: int, num_workers: int) -> None:
        self._run, self._attempt, self._ranks = run, attempt, range(num_workers)
        self._before: dict[int, dict[str, Any]] = {}
        self._slow_windows = dict.fromkeys(self._ranks, 0)
        self._named, self._next_look = set[int](), 0.0

    def look(self) -> list[str]:
        """What there is to say now; each straggler is named once."""
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + LOOK_EVERY_S
        now = {rank: shown for rank in self._ranks if (shown := self._read(rank))}
        if len(now) < max(2, len(self._ranks)):
            return []
        if not self._before:
            self._before = now
        if any(now[rank]["step"] - self._before[rank]["step"] < WINDOW_STEPS for rank in self._ranks):
            return []
        busy = {rank: _busy_s_a_step(self._before[rank], now[rank]) for rank in self._ranks}
        self._before = now
        judged = (self._judge(rank, factor, now[rank]["host"]) for rank, factor in factors(busy).items())
        return [text for text in judged if text]

    def _judge(self, rank: int, factor: float, host: str) -> str:
        self._slow_windows[rank] = self._slow_windows[rank] + 1 if factor > SLOW else 0
        if self._slow_windows[rank] < WINDOWS or rank in self._named:
            return ""
        self._named.add(rank)
        return f"rank {rank} on {host} holds up the others: its own work takes {factor:.1f} times as long"

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            shown = read_json(self._run.rank_progress(rank))
        except (OSError, ValueError):
            return None
        return shown if shown.get("attempt") == self._attempt and "busy_s" in shown else None


def _busy_s_a_step(before: dict[str, Any], now: dict[str, Any]) -> float:
    return float((now["busy_s"] - before["busy_s"]) / (now["step"] - before["step"]))
