"""Effects of branch placements: synthetic sweeps with known effects."""

from itertools import product
from pathlib import Path

import pytest

from launcher.tune.results.tap_effects import TapEffects, compute_tap_effects
from tests.helpers.histories import TAPS, add_trial, end_trial, make_history, make_sweep

NAMES = ("stage1", "stage2", "stage3")


def effects_of(folder: Path, *placements: tuple[tuple[str, ...], float]) -> TapEffects:
    _, space = make_sweep(folder, TAPS)
    history = make_history(*(({"model.branches": list(taps)}, result) for taps, result in placements))
    (result,) = compute_tap_effects(space, history)
    return result


def top1_of(taps: tuple[str, ...]) -> float:
    """Return an accuracy with effects of 1, 2 and 4 points."""
    return 0.5 + sum({"stage1": 0.01, "stage2": 0.02, "stage3": 0.04}[tap] for tap in taps)


ALL = [tuple(name for name, is_used in zip(NAMES, used, strict=True) if is_used) for used in product((0, 1), repeat=3)]


def test_effects_are_those_of_the_synthetic_results(tmp_path: Path) -> None:
    measured = effects_of(tmp_path, *((taps, top1_of(taps)) for taps in ALL))
    assert [each.value for each in measured.taps] == pytest.approx([0.01, 0.02, 0.04])
    assert [each.counts for each in measured.taps] == [(4, 4)] * 3
    assert [each.error for each in measured.taps] == pytest.approx([0, 0, 0], abs=1e-12)
    assert [each.value for each in measured.pairs] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_tap_gets_no_credit_for_another_that_often_accompanies_it(tmp_path: Path) -> None:
    """Differences of means would attribute the effect of stage3 to stage1: 0.55 - 0.51 instead of 0.01."""
    uneven = [("stage1", "stage3"), ("stage1", "stage3"), ("stage1",), ("stage2",), ("stage2", "stage3"), ("stage2",)]
    measured = effects_of(tmp_path, *((taps, top1_of(taps)) for taps in uneven), (("stage3",), top1_of(("stage3",))))
    assert [each.value for each in measured.taps] == pytest.approx([0.01, 0.02, 0.04])


def test_an_interaction_is_the_difference_of_differences(tmp_path: Path) -> None:
    together = {("stage1", "stage2"), NAMES}
    measured = effects_of(tmp_path, *((taps, top1_of(taps) + 0.03 * (taps in together)) for taps in ALL))
    first = measured.pairs[0]
    assert (first.taps, first.counts) == (("stage1", "stage2"), (2, 2, 2, 2))
    assert first.value == pytest.approx(0.03)


def test_an_interaction_gets_no_credit_for_a_third_tap(tmp_path: Path) -> None:
    """Stage 3 is used only with both others."""
    measured = effects_of(tmp_path, *((taps, top1_of(taps)) for taps in ALL if "stage3" not in taps or taps == NAMES))
    assert measured.pairs[0].taps == ("stage1", "stage2")
    assert measured.pairs[0].value == pytest.approx(0, abs=1e-12)


def test_a_standard_error_is_that_of_two_means(tmp_path: Path) -> None:
    """Six residuals of 0.005 with 4 degrees of freedom, times 1/4 + 1/2; t is 2.7764."""
    with_tap, without_tap = (0.5, 0.51, 0.5, 0.51), (0.4, 0.41)
    measured = effects_of(tmp_path, *((("stage1",), top1) for top1 in with_tap), *(((), top1) for top1 in without_tap))
    effect = measured.taps[0]
    assert effect.counts == (2, 4)
    assert effect.value == pytest.approx(0.1)
    assert effect.error == pytest.approx((6 * 0.005**2 / 4 * 0.75) ** 0.5)
    assert effect.half_width == pytest.approx(2.7764 * (6 * 0.005**2 / 4 * 0.75) ** 0.5, rel=1e-4)


def test_effects_that_trials_can_not_determine_are_none(tmp_path: Path) -> None:
    """Stage 1 is always used, and with one trial per unknown the noise can not be estimated."""
    measured = effects_of(tmp_path, (("stage1",), 0.5), (("stage1", "stage2"), 0.6))
    assert [(each.value, each.error) for each in measured.taps] == [
        (None, None),
        (pytest.approx(0.1), None),
        (None, None),
    ]
    assert measured.pairs == []


def test_placements_of_one_size_give_no_effects_of_single_taps(tmp_path: Path) -> None:
    measured = effects_of(tmp_path, *(((name,), 0.5) for name in NAMES))
    assert [each.value for each in measured.taps] == [None] * 3


def test_placements_are_sorted_by_their_means(tmp_path: Path) -> None:
    measured = effects_of(tmp_path, (("stage1",), 0.4), (("stage2",), 0.7), (("stage1",), 0.5))
    placements = [(each.taps, each.count, each.mean, each.deviation) for each in measured.placements]
    assert placements == [
        (("stage2",), 1, 0.7, None),
        (("stage1",), 2, pytest.approx(0.45), pytest.approx(0.1 / 2**0.5)),
    ]


def test_only_finished_trials_with_the_parameter_count(tmp_path: Path) -> None:
    _, space = make_sweep(tmp_path, TAPS)
    history = make_history(({"model.branches": ["stage1"]}, 0.5), ({}, 0.9))
    add_trial(history, 2, {"model.branches": ["stage2"]})
    end_trial(history, 2, "pruned", [{"valid/deepest_top1": 0.1}])
    (result,) = compute_tap_effects(space, history)
    assert result.trials == 1


def test_without_placements_there_are_no_effects(tmp_path: Path) -> None:
    _, space = make_sweep(tmp_path, "optim.lr: {uniform: [0.1, 0.2]}")
    assert compute_tap_effects(space, make_history(({"optim.lr": 0.1}, 0.5))) == []
