"""Paired differences, Student's t and Holm's correction, compared with published values and hand calculations."""

import pytest

from fmfsd.report.confidence_intervals import (
    PairedDifference,
    holm_correction,
    student_t_probability,
    student_t_quantile,
)


def test_pairs_are_compared_by_their_differences() -> None:
    """Differences of 1, 2 and 3 points: mean 2, deviation 1, half width 4.3027 / sqrt(3)."""
    result = PairedDifference.from_pairs([0.71, 0.75, 0.70], [0.70, 0.73, 0.67])
    assert (result.mean, result.deviation, result.half_width) == pytest.approx((0.02, 0.01, 0.0248414), abs=1e-6)
    assert str(result) == "+2.00 ± 1.00 (-0.48 to +4.48)"


def test_a_single_pair_has_no_interval() -> None:
    assert str(PairedDifference.from_pairs([0.5], [0.515])) == "-1.50"


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (30, 2.0423), (40, 2.0211), (120, 1.9799)]
)
def test_quantiles_of_t_equal_published_tables(freedom: int, expected: float) -> None:
    """NIST/SEMATECH e-Handbook 1.3.6.7.2, and Abramowitz and Stegun, table 26.10."""
    assert student_t_quantile(freedom) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("t", "freedom", "expected"), [(6.314, 1, 0.9), (2.015, 5, 0.9), (2.750, 30, 0.99)])
def test_probabilities_of_t_equal_published_tables(t: float, freedom: int, expected: float) -> None:
    assert student_t_probability(t, freedom) == pytest.approx(expected, abs=5e-5)


def test_p_is_that_of_the_mean_over_its_standard_error() -> None:
    """Differences 1, 2 and 3: t is 2 sqrt(3) with 2 degrees of freedom, where P is t / sqrt(2 + t t)."""
    assert PairedDifference.from_pairs([1, 2, 3], [0, 0, 0]).p == pytest.approx(1 - (12 / 14) ** 0.5)


def test_p_is_0_for_equal_differences_and_1_for_no_differences() -> None:
    assert (PairedDifference.from_pairs([2, 3], [1, 2]).p, PairedDifference.from_pairs([1, 2], [1, 2]).p) == (0, 1)


def test_several_comparisons_have_holms_correction() -> None:
    """0.01 x 3, 0.03 x 2, and 0.04 x 1, which is raised to the value before it."""
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.9, 0.6]) == [1.0, 1.0]
