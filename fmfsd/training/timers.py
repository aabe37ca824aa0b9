"""Timers: duration of steps, time spent waiting for data, and time since the last checkpoint."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StepTimer:
    """Seconds spent in steps and waiting for data, and images trained on, since the last `pop`."""

    waited_s: float = 0.0
    stepped_s: float = 0.0
    images: int = 0
    last_step_s: float = 0.0
    busy_s: float = 0.0
    """Seconds in all steps so far, without waiting for other workers."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - start

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Count the block as a step over `images` images."""
        start = time.perf_counter()
        yield
        self.last_step_s = time.perf_counter() - start
        self.stepped_s += self.last_step_s
        self.images += images

    def peek(self) -> dict[str, float]:
        """Return the throughput, and the share of time spent waiting for data."""
        seconds = max(self.stepped_s, 1e-9)
        return {"images_per_s": round(self.images / seconds, 1), "data_wait": round(self.waited_s / seconds, 4)}

    def pop(self) -> dict[str, float]:
        """Return the same as `peek` and reset the counters."""
        rates = self.peek()
        self.waited_s, self.stepped_s, self.images = 0.0, 0.0, 0
        return rates


class SaveClock:
    """`due` is True once `minutes` have passed since the last `restart`; never if `minutes` is None."""

    def __init__(self, minutes: float | None) -> None:
        self._seconds = math.inf if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._start >= self._seconds
