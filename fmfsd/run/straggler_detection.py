"""Straggler detection: workers whose own compute time, without waiting, is much longer than the median."""

import statistics
from collections.abc import Mapping

SLOW_FACTOR = 1.5
"""A worker is slow if its own time is at least this multiple of the median of all workers."""


def compute_slowdowns(busy_s: Mapping[int, float]) -> dict[int, float]:
    """Return each rank's busy time divided by the (lower) median of all ranks; empty if no rank has worked yet."""
    median = statistics.median_low(busy_s.values()) if busy_s else 0.0
    return {rank: seconds / median for rank, seconds in busy_s.items()} if median > 0 else {}
