"""Finds workers that hang, by what changes between two looks: no clock is compared with another."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.plan.plan import SLOW_STATES_S

LOOK_EVERY_S = 0.5
COMPILE_S = 1800.0
"""And compiling as long as that."""
_QUICK_STATES = ("train", "evaluate")
_EARLY_STATES = ("starting", "connect", "setup", "compile")
_ENDED_STATES = ("finished", "stopped")


@dataclass
class _Seen:
    """What a worker has last shown, and when that last changed."""

    beat_at: float
    moved_at: float
    shown: dict[str, Any] = field(default_factory=dict)

    def note(self, shown: dict[str, Any]) -> None:
        now = time.monotonic()
        if shown.get("beat") != self.shown.get("beat"):
            self.beat_at = now
        if any(shown.get(name) != self.shown.get(name) for name in ("moves", "state")):
            self.moved_at = now
        self.shown = shown


@dataclass(frozen=True)
class Hang:
    """`blamed` are the ranks that hang by themselves, none if all wait for one another; `pids` are all workers'."""

    text: str
    blamed: tuple[int, ...]
    pids: dict[int, int]


class Pulses:
    """The progress files of an attempt's workers."""

    def __init__(self, run: RunDir, attempt: int, num_workers: int, *, hang_timeout_s: float) -> None:
        self._run, self._attempt, self._timeout_s = run, attempt, hang_timeout_s
        now = time.monotonic()
        self._seen = {rank: _Seen(now, now) for rank in range(num_workers)}
        self._next_look = 0.0

    def look(self) -> Hang | None:
        """A hang, once a worker has not moved for the timeout."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_EVERY_S
        for rank, seen in self._seen.items():
            if shown := self._read(rank):
                seen.note(shown)
        overdue = [seen for seen in self._seen.values() if now - seen.moved_at > self._limit_s(seen)]
        if overdue and not self._takes_files():
            for seen in self._seen.values():
                seen.beat_at = seen.moved_at = now
            return None
        return self._hang(now) if overdue else None

    def _takes_files(self) -> bool:
        """On a full disk no worker can show that it moves; that is no hang."""
        probe = self._run.progress / "probe.json"
        try:
            write_json(probe, {"text": "x" * 4096}, durable=False)
            probe.unlink()
        except OSError:
            return False
        return True

    def has_begun(self) -> bool:
        """Whether any worker came as far as to train."""
        shown = (self._read(rank) for rank in self._seen)
        return any(each is not None and each["state"] not in _EARLY_STATES for each in shown)

    def rank_of(self, pid: int, ranks: Iterable[int]) -> int | None:
        """Which of the workers is this process and has not said that it is done; None if there is none."""
        for rank in ranks:
            shown = self._read(rank) or self._seen[rank].shown
            if shown.get("pid") == pid and shown.get("state") not in _ENDED_STATES:
                return rank
        return None

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            shown = read_json(self._run.rank_progress(rank))
        except (OSError, ValueError):
            return None
        return shown if shown.get("attempt") == self._attempt else None

    def _limit_s(self, seen: _Seen) -> float:
        state = seen.shown.get("state", "")
        if state in _ENDED_STATES:
            return float("inf")
        if state in _QUICK_STATES:
            return self._timeout_s
        return max(self._timeout_s, COMPILE_S if state == "compile" else SLOW_STATES_S)

    def _hang(self, now: float) -> Hang:
        """The worker that has no pulse is to blame, else of those that wait for nobody the ones that came least far,
        else what lies between them."""
        alive = {rank: seen for rank, seen in self._seen.items() if seen.shown.get("state") not in _ENDED_STATES}
        silent = [rank for rank, seen in alive.items() if now - seen.beat_at > self._timeout_s / 2]
        busy = {rank: seen.shown.get("moves", 0) for rank, seen in alive.items() if not seen.shown.get("waiting")}
        blamed = silent or [rank for rank, moves in busy.items() if moves == min(busy.values())]
        pids = {rank: seen.shown["pid"] for rank, seen in alive.items() if "pid" in seen.shown}
        why = "has no pulse, as a stopped process" if silent else "waits for no other worker"
        since = f"for {self._timeout_s:g} s or more (--hang-timeout)"
        named = "; ".join(self._described(rank) for rank in blamed)
        network = f"all workers wait for one another, {since}: is the network between them cut?"
        return Hang(f"{named}: hangs, {since}; it {why}" if blamed else network, tuple(blamed), pids)

    def _described(self, rank: int) -> str:
        shown = self._seen[rank].shown
        if not shown:
            return f"rank {rank}, which has not started"
        return f"rank {rank} (pid {shown['pid']} on {shown['host']}) in {shown['state']} after step {shown['step']}"
