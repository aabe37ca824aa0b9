"""Differences in pairs, Student's t and Holm's correction, against published values and a hand's calculation."""

import pytest

from fmfsd.report.paired_tests import Paired, holm, t_quantile, t_within


def test_pairs_are_compared_by_their_differences() -> None:
    """Differences 1, 2 and 3 points: mean 2, deviation 1, and 4.3027 / sqrt(3) of it to each side."""
    found = Paired.of([0.71, 0.75, 0.70], [0.70, 0.73, 0.67])
    assert (found.mean, found.deviation, found.half_width) == pytest.approx((0.02, 0.01, 0.0248414), abs=1e-6)
    assert str(found) == "+2.00 ± 1.00 (-0.48 to +4.48)"


def test_of_one_pair_no_interval_is_known() -> None:
    assert str(Paired.of([0.5], [0.515])) == "-1.50"


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (30, 2.0423), (40, 2.0211), (120, 1.9799)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    """NIST/SEMATECH e-Handbook 1.3.6.7.2, and Abramowitz and Stegun, table 26.10."""
    assert t_quantile(freedom) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("t", "freedom", "expected"), [(6.314, 1, 0.9), (2.015, 5, 0.9), (2.750, 30, 0.99)])
def test_probabilities_are_those_of_the_tables(t: float, freedom: int, expected: float) -> None:
    assert t_within(t, freedom) == pytest.approx(expected, abs=5e-5)


def test_p_is_of_the_mean_over_its_error() -> None:
    """Differences 1, 2 and 3: t is 2 sqrt(3) with 2 degrees of freedom, where P is t / sqrt(2 + t t)."""
    assert Paired.of([1, 2, 3], [0, 0, 0]).p == pytest.approx(1 - (12 / 14) ** 0.5)


def test_equal_differences_are_certain_and_none_at_all_is_no_difference() -> None:
    assert (Paired.of([2, 3], [1, 2]).p, Paired.of([1, 2], [1, 2]).p) == (0, 1)


def test_several_comparisons_are_corrected_as_holm_does() -> None:
    """0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not come out below the one before it."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
