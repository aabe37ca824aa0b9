"""Paired significance tests: differences in pairs, Student's t-test, Holm's correction."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE_LEVEL = 0.95
"""Confidence level of intervals; 1 - CONFIDENCE_LEVEL is the significance level."""


@dataclass(frozen=True)
class PairedDifference:
    """Differences between pairs: mean, standard deviation, half width of the 95 % interval, and p-value.

    `p`: two-sided p-value of Student's t-test against a mean of 0. With one pair only the mean is known, the other
    values are None.
    """

    mean: float
    deviation: float | None
    half_width: float | None
    p: float | None

    @classmethod
    def from_pairs(cls, values: Sequence[float], references: Sequence[float]) -> "PairedDifference":
        """Compute the statistics of `values` minus `references`, at least one pair."""
        differences = [one - other for one, other in zip(values, references, strict=True)]
        mean, count = statistics.mean(differences), len(differences)
        if count == 1:
            return cls(mean, None, None, None)
        deviation = statistics.stdev(differences)
        error = deviation / math.sqrt(count)
        return cls(mean, deviation, student_t_quantile(count - 1) * error, _p_value(mean, error, count - 1))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the interval."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    def __str__(self) -> str:
        """Format in percentage points."""
        if self.deviation is None or self.interval is None:
            return f"{100 * self.mean:+.2f}"
        ends = " to ".join(f"{100 * end:+.2f}" for end in self.interval)
        return f"{100 * self.mean:+.2f} ± {100 * self.deviation:.2f} ({ends})"


def _p_value(mean: float, error: float, freedom: int) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 1 - student_t_probability(abs(mean) / error, freedom)


def student_t_probability(t: float, freedom: int) -> float:
    """Return P(-t < T < t) for Student's T with `freedom` degrees of freedom, t >= 0.

    Finite sums: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 (odd) and 26.7.4 (even).
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, is_odd = math.cos(angle), freedom % 2
    term, total = (cosine if is_odd else 1.0), 0.0
    for k in range(1 + is_odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def student_t_quantile(freedom: int) -> float:
    """Return t with P(-t < T < t) = CONFIDENCE_LEVEL for Student's T with `freedom` >= 1 degrees of freedom."""
    low, high = 0.0, 16.0  # 12.7 for one degree of freedom, less for more
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_probability(middle, freedom) < CONFIDENCE_LEVEL else (low, middle)
    return high


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons (family-wise error rate).

    Holm 1979, Scand. J. Statistics 6, 65-70.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of `samples` (1927, doi 10.1080/01621459.1927.10502953)."""
    z = 1.959964
    middle = share + z**2 / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    scale = 1 + z**2 / samples
    return (middle - half) / scale, (middle + half) / scale
