"""Times as sorted intervals that do not meet: what they cover, and what of it others cover too."""

from collections.abc import Iterable, Sequence

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    merged = list[Interval]()
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def without(whole: Interval, inner: Iterable[Interval]) -> list[Interval]:
    """`whole` without the intervals in it."""
    left, start = list[Interval](), whole[0]
    for inner_start, inner_end in union(inner):
        if inner_start > start:
            left.append((start, inner_start))
        start = max(start, inner_end)
    return [*left, (start, whole[1])] if start < whole[1] else left


def length(intervals: Sequence[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def overlap(one: Sequence[Interval], other: Sequence[Interval]) -> float:
    """How long both go on."""
    total, first, second = 0.0, 0, 0
    while first < len(one) and second < len(other):
        (start, end), (other_start, other_end) = one[first], other[second]
        total += max(0.0, min(end, other_end) - max(start, other_start))
        if end <= other_end:
            first += 1
        else:
            second += 1
    return total
