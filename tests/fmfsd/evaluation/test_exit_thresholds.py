"""Early-exit thresholds: accuracy and cost computed by hand, and the chosen thresholds are the cheapest."""

from itertools import product

import pytest
import torch

from fmfsd.evaluation.exit_thresholds import NEVER, HeadConfidences, find_cheapest_thresholds, threshold_curve

COSTS = (1.0, 2.0, 4.0)


def random_confidences(samples: int = 40) -> HeadConfidences:
    generator = torch.Generator().manual_seed(5)
    confidence = torch.rand(3, samples, generator=generator, dtype=torch.float64)
    return HeadConfidences(confidence, torch.rand(3, samples, generator=generator) < confidence.sqrt())


def accuracy_and_cost(scores: HeadConfidences, thresholds: tuple[float, float]) -> tuple[float, float]:
    """Return accuracy and mean cost."""
    correct, cost = 0, 0.0
    for sample in range(scores.correct.shape[1]):
        head = next((each for each in range(2) if scores.confidence[each, sample] >= thresholds[each]), 2)
        correct += bool(scores.correct[head, sample])
        cost += COSTS[head]
    return correct / scores.correct.shape[1], cost / scores.correct.shape[1]


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.7), (NEVER, 0.4), (NEVER, NEVER)])
def test_accuracy_and_cost_of_thresholds_equal_those_computed_by_hand(thresholds: tuple[float, float]) -> None:
    top1, leaving = random_confidences().apply_thresholds(thresholds)
    cost = sum(share * each for share, each in zip(leaving, COSTS, strict=True))
    assert (top1, cost) == pytest.approx(accuracy_and_cost(random_confidences(), thresholds))


def test_no_other_thresholds_reach_the_accuracy_at_a_lower_cost() -> None:
    scores = random_confidences()
    least = scores.deepest_top1 - 0.05
    levels = [[*scores.confidence[head].tolist(), NEVER] for head in range(2)]
    best = min(cost for top1, cost in (accuracy_and_cost(scores, each) for each in product(*levels)) if top1 >= least)
    chosen = find_cheapest_thresholds(scores, COSTS, least)
    assert chosen is not None
    top1, cost = accuracy_and_cost(scores, (chosen[0], chosen[1]))
    assert top1 >= least
    assert cost == pytest.approx(best)


def test_an_unreachable_accuracy_has_no_thresholds() -> None:
    assert find_cheapest_thresholds(random_confidences(), COSTS, 1.01) is None


def test_the_curve_starts_with_all_images_at_the_first_exit_and_ends_with_none() -> None:
    scores = random_confidences()
    points = threshold_curve(scores, COSTS, [2 * cost for cost in COSTS])
    assert (points[0].cost, points[-1].cost) == (COSTS[0], COSTS[-1])
    assert points[-1].top1 == scores.deepest_top1
    assert [point.seconds for point in points] == pytest.approx([2 * point.cost for point in points])
    assert [point.cost for point in points] == sorted(point.cost for point in points)
