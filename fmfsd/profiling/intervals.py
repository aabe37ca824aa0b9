"""Arithmetic on time intervals: union, difference, length and overlap of sorted, disjoint intervals."""

from collections.abc import Iterable, Sequence

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals into sorted, disjoint ones."""
    merged = list[Interval]()
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def subtract(whole: Interval, inner: Iterable[Interval]) -> list[Interval]:
    """Return `whole` without the intervals `inner`, which lie in it."""
    gaps, start = list[Interval](), whole[0]
    for inner_start, inner_end in union(inner):
        if inner_start > start:
            gaps.append((start, inner_start))
        start = max(start, inner_end)
    return [*gaps, (start, whole[1])] if start < whole[1] else gaps


def length(intervals: Sequence[Interval]) -> float:
    """Return the total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def overlap(one: Sequence[Interval], other: Sequence[Interval]) -> float:
    """Return the length of the intersection of two lists of sorted, disjoint intervals."""
    total, first, second = 0.0, 0, 0
    while first < len(one) and second < len(other):
        (start, end), (other_start, other_end) = one[first], other[second]
        total += max(0.0, min(end, other_end) - max(start, other_start))
        if end <= other_end:
            first += 1
        else:
            second += 1
    return total
