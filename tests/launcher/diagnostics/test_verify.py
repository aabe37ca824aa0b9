"""The verdict on runs with different numbers of workers."""

from typing import Any

import pytest

from launcher.diagnostics.verify.tolerances import PROMISES, Row


def make_comparison(*losses: float, gradients: float = 0.0, weights: float = 0.0, samples: int = 0) -> dict[str, Any]:
    """Return a comparison in the form that `fmfsd compare` writes."""
    return {
        "losses": [{"difference": value, "where": "loss"} for value in losses],
        "gradients": [{"difference": gradients / (number + 1), "where": f"p{number}"} for number in range(len(losses))],
        "samples": samples,
        "weights": {"difference": weights, "where": "w"},
    }


@pytest.mark.parametrize(
    ("precision", "comparison", "beyond"),
    [
        ("fp64", make_comparison(1e-10, 9e-10, gradients=9e-10, weights=9e-10), ()),
        ("fp64", make_comparison(1e-10, 2e-9), ("losses",)),
        ("fp64", make_comparison(0.0, gradients=2e-9, weights=2e-9), ("gradients", "weights")),
        ("fp64", make_comparison(0.0, gradients=float("nan")), ("gradients",)),
        ("fp32", make_comparison(9e-6, 9e-6, 1e-3, gradients=0.1, weights=0.1), ()),
        ("fp32", make_comparison(0.0, 2e-5), ("losses",)),
        ("bf16", make_comparison(1.0, gradients=1.0, weights=1.0), ()),
        ("bf16", make_comparison(0.0, samples=2), ("samples",)),
    ],
)
def test_differences_beyond_the_tolerance_are_named(
    precision: str, comparison: dict[str, Any], beyond: tuple[str, ...]
) -> None:
    row = Row.of(2, 1, comparison, PROMISES[precision])
    assert row.beyond == beyond
    assert row.verdict == (f"NO: {', '.join(beyond)}" if beyond else "as promised")


def test_the_worst_parameter_is_named_with_its_step() -> None:
    row = Row.of(4, 2, make_comparison(0.0, 0.0, gradients=2e-12), PROMISES["fp64"])
    assert (
        row.describe_gradients()
        == "4 workers: gradients differ by 2.0e-12 in step 1, by 2.0e-12 at most, in p0 in step 1"
    )
