"""Effects of taps: made-up searches whose answers are known."""

from itertools import product
from pathlib import Path

import pytest

from launcher.tune.results.tap_effects import Effects, effects
from tests.helpers.histories import TAPS, ask, end, history_of, sweep_of

NAMES = ("stage1", "stage2", "stage3")


def effects_of(folder: Path, *placements: tuple[tuple[str, ...], float]) -> Effects:
    _, space = sweep_of(folder, TAPS)
    history = history_of(*(({"model.branches": list(taps)}, result) for taps, result in placements))
    (found,) = effects(space, history)
    return found


def result_of(taps: tuple[str, ...]) -> float:
    """Effects of 1, 2 and 4 points."""
    return 0.5 + sum({"stage1": 0.01, "stage2": 0.02, "stage3": 0.04}[tap] for tap in taps)


ALL = [tuple(name for name, there in zip(NAMES, which, strict=True) if there) for which in product((0, 1), repeat=3)]


def test_effects_are_those_that_the_results_were_made_with(tmp_path: Path) -> None:
    found = effects_of(tmp_path, *((taps, result_of(taps)) for taps in ALL))
    assert [each.value for each in found.taps] == pytest.approx([0.01, 0.02, 0.04])
    assert [each.counts for each in found.taps] == [(4, 4)] * 3
    assert [each.error for each in found.taps] == pytest.approx([0, 0, 0], abs=1e-12)
    assert [each.value for each in found.pairs] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_tap_that_came_with_a_better_one_gets_no_credit_for_it(tmp_path: Path) -> None:
    """Plain means would give stage1 what stage3 brings: 0.55 - 0.51 here, instead of 0.01."""
    uneven = [("stage1", "stage3"), ("stage1", "stage3"), ("stage1",), ("stage2",), ("stage2", "stage3"), ("stage2",)]
    found = effects_of(tmp_path, *((taps, result_of(taps)) for taps in uneven), (("stage3",), result_of(("stage3",))))
    assert [each.value for each in found.taps] == pytest.approx([0.01, 0.02, 0.04])


def test_an_interaction_is_the_difference_of_differences(tmp_path: Path) -> None:
    together = {("stage1", "stage2"), NAMES}
    found = effects_of(tmp_path, *((taps, result_of(taps) + 0.03 * (taps in together)) for taps in ALL))
    first = found.pairs[0]
    assert (first.taps, first.counts) == (("stage1", "stage2"), (2, 2, 2, 2))
    assert first.value == pytest.approx(0.03)


def test_an_interaction_gets_no_credit_for_a_third_tap(tmp_path: Path) -> None:
    """Stage 3 is there only with both others."""
    found = effects_of(tmp_path, *((taps, result_of(taps)) for taps in ALL if "stage3" not in taps or taps == NAMES))
    assert found.pairs[0].taps == ("stage1", "stage2")
    assert found.pairs[0].value == pytest.approx(0, abs=1e-12)


def test_a_standard_error_is_that_of_two_means(tmp_path: Path) -> None:
    """Six residuals of 0.005 with 4 degrees of freedom to spare, times 1/4 + 1/2; t is 2.7764."""
    there, absent = (0.5, 0.51, 0.5, 0.51), (0.4, 0.41)
    found = effects_of(tmp_path, *((("stage1",), top1) for top1 in there), *(((), top1) for top1 in absent))
    effect = found.taps[0]
    assert effect.counts == (2, 4)
    assert effect.value == pytest.approx(0.1)
    assert effect.error == pytest.approx((6 * 0.005**2 / 4 * 0.75) ** 0.5)
    assert effect.half_width == pytest.approx(2.7764 * (6 * 0.005**2 / 4 * 0.75) ** 0.5, rel=1e-4)


def test_what_trials_can_not_tell_is_not_said(tmp_path: Path) -> None:
    """Stage 1 is always there, and of one trial for each unknown there is no noise to see."""
    found = effects_of(tmp_path, (("stage1",), 0.5), (("stage1", "stage2"), 0.6))
    assert [(each.value, each.error) for each in found.taps] == [(None, None), (pytest.approx(0.1), None), (None, None)]
    assert found.pairs == []


def test_of_placements_of_one_size_only_nothing_is_said_of_single_taps(tmp_path: Path) -> None:
    found = effects_of(tmp_path, *(((name,), 0.5) for name in NAMES))
    assert [each.value for each in found.taps] == [None] * 3


def test_placements_come_best_first_with_their_means(tmp_path: Path) -> None:
    found = effects_of(tmp_path, (("stage1",), 0.4), (("stage2",), 0.7), (("stage1",), 0.5))
    shown = [(each.taps, each.count, each.mean, each.deviation) for each in found.placements]
    assert shown == [(("stage2",), 1, 0.7, None), (("stage1",), 2, pytest.approx(0.45), pytest.approx(0.1 / 2**0.5))]


def test_only_finished_trials_that_have_the_parameter_count(tmp_path: Path) -> None:
    _, space = sweep_of(tmp_path, TAPS)
    history = history_of(({"model.branches": ["stage1"]}, 0.5), ({}, 0.9))
    ask(history, 2, {"model.branches": ["stage2"]})
    end(history, 2, "pruned", [{"valid/deepest_top1": 0.1}])
    (found,) = effects(space, history)
    assert found.trials == 1


def test_without_placements_there_are_no_effects(tmp_path: Path) -> None:
    _, space = sweep_of(tmp_path, "optim.lr: {uniform: [0.1, 0.2]}")
    assert effects(space, history_of(({"optim.lr": 0.1}, 0.5))) == []
