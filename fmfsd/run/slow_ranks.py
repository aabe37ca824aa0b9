"""Which workers hold up the others: those whose own work, without waiting, takes much longer."""

import statistics
from collections.abc import Mapping

SLOW = 1.5
"""So many times the median of all workers' own time is much."""


def factors(busy_s: Mapping[int, float]) -> dict[int, float]:
    """By rank, how many times the median (the lower one of two) its own time is; empty where nobody has worked yet."""
    usual = statistics.median_low(busy_s.values()) if busy_s else 0.0
    return {rank: seconds / usual for rank, seconds in busy_s.items()} if usual > 0 else {}
