"""Thresholds of early exits: what they come to, by hand, and that the chosen ones are the cheapest."""

from itertools import product

import pytest
import torch

from fmfsd.evaluation.exit_thresholds import NEVER, Sureness, cheapest, curve

COSTS = (1.0, 2.0, 4.0)


def drawn(samples: int = 40) -> Sureness:
    generator = torch.Generator().manual_seed(5)
    confidence = torch.rand(3, samples, generator=generator, dtype=torch.float64)
    return Sureness(confidence, torch.rand(3, samples, generator=generator) < confidence.sqrt())


def by_hand(sure: Sureness, thresholds: tuple[float, float]) -> tuple[float, float]:
    """Accuracy and cost."""
    correct, cost = 0, 0.0
    for sample in range(sure.right.shape[1]):
        head = next((each for each in range(2) if sure.confidence[each, sample] >= thresholds[each]), 2)
        correct += bool(sure.right[head, sample])
        cost += COSTS[head]
    return correct / sure.right.shape[1], cost / sure.right.shape[1]


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.7), (NEVER, 0.4), (NEVER, NEVER)])
def test_what_thresholds_come_to_is_counted_by_hand(thresholds: tuple[float, float]) -> None:
    top1, leaving = drawn().with_thresholds(thresholds)
    cost = sum(share * each for share, each in zip(leaving, COSTS, strict=True))
    assert (top1, cost) == pytest.approx(by_hand(drawn(), thresholds))


def test_no_other_thresholds_keep_the_accuracy_at_a_lower_cost() -> None:
    sure = drawn()
    least = sure.deepest_top1 - 0.05
    levels = [[*sure.confidence[head].tolist(), NEVER] for head in range(2)]
    best = min(cost for top1, cost in (by_hand(sure, each) for each in product(*levels)) if top1 >= least)
    chosen = cheapest(sure, COSTS, least)
    assert chosen is not None
    top1, cost = by_hand(sure, (chosen[0], chosen[1]))
    assert top1 >= least
    assert cost == pytest.approx(best)


def test_an_accuracy_that_nothing_gives_has_no_thresholds() -> None:
    assert cheapest(drawn(), COSTS, 1.01) is None


def test_the_curve_goes_from_all_leaving_at_once_to_none() -> None:
    sure = drawn()
    points = curve(sure, COSTS, [2 * cost for cost in COSTS])
    assert (points[0].cost, points[-1].cost) == (COSTS[0], COSTS[-1])
    assert points[-1].top1 == sure.deepest_top1
    assert [point.seconds for point in points] == pytest.approx([2 * point.cost for point in points])
    assert [point.cost for point in points] == sorted(point.cost for point in points)
