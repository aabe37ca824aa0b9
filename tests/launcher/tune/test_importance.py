"""Parameter importances: the parameter that determines the result comes first, or there is a reason why there are
none."""

import random
from pathlib import Path
from typing import Any

import pytest

from launcher.tune.results.importance import MIN_TRIALS, compute_importances
from tests.helpers.histories import TAPS, make_history, make_sweep

RATE, ALPHA = "optim.lr: {loguniform: [0.01, 1.0]}", "distill.alpha: {uniform: [0.0, 0.9]}"


def sample_values(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [{"optim.lr": 10 ** rng.uniform(-2, 0), "distill.alpha": rng.uniform(0, 0.9)} for _ in range(count)]


@pytest.mark.parametrize(("mode", "expected"), [("max", "optim.lr"), ("min", "distill.alpha")])
def test_the_parameter_that_determines_the_best_results_comes_first(tmp_path: Path, mode: str, expected: str) -> None:
    """For the largest quarter of the rates the result is the rate, otherwise it is -alpha."""
    _, space = make_sweep(tmp_path, RATE, ALPHA)
    values = sample_values(80)
    results = [each["optim.lr"] if each["optim.lr"] > 0.3 else -each["distill.alpha"] for each in values]
    trials = zip(values, results, strict=True)
    (importance,) = compute_importances(space, make_history(*trials, mode=mode))
    assert importance.shares is not None
    assert next(iter(importance.shares)) == expected
    assert sum(importance.shares.values()) == pytest.approx(1)


def test_importances_of_branch_placements_are_per_tap(tmp_path: Path) -> None:
    _, space = make_sweep(tmp_path, TAPS)
    rng = random.Random(0)
    placements = [rng.sample(["stage1", "stage2", "stage3"], rng.randint(1, 3)) for _ in range(60)]
    (importance,) = compute_importances(
        space, make_history(*(({"model.branches": taps}, 0.1 * ("stage2" in taps)) for taps in placements))
    )
    assert importance.shares is not None
    assert next(iter(importance.shares)) == "model.branches: stage2"
    assert set(importance.shares) == {f"model.branches: stage{number}" for number in (1, 2, 3)}


def test_a_conditional_parameter_counts_where_it_exists(tmp_path: Path) -> None:
    """A rate exists only with teacher deepest, and then it is the result."""
    condition = "optim.lr: {loguniform: [0.01, 1.0], when: {distill.teacher: deepest}}"
    _, space = make_sweep(tmp_path, "distill.teacher: {choice: [deepest, ensemble]}", condition, ALPHA)
    trials = [({**values, "distill.teacher": "deepest"}, values["optim.lr"]) for values in sample_values(60)]
    others = [
        ({"distill.alpha": values["distill.alpha"], "distill.teacher": "ensemble"}, 0.005)
        for values in sample_values(60)
    ]
    (importance,) = compute_importances(space, make_history(*trials, *others))
    assert importance.shares is not None
    assert set(importance.shares) == {"optim.lr", "distill.alpha", "distill.teacher"}
    assert importance.shares["optim.lr"] > 0.8


def test_every_kind_of_parameter_has_an_importance(tmp_path: Path) -> None:
    kinds = (
        "seed: {int: [0, 5]}",
        "optim.momentum: {quniform: [0.5, 0.9, 0.1]}",
        "method: {grid: [fmfsd, byot]}",
        "optim.milestones: {choice: [[4, 5], [3]]}",
        "optim.weight_decay: {const: 0.001}",
    )
    _, space = make_sweep(tmp_path, *kinds)
    recipes: list[dict[str, Any]] = [
        {"method": "fmfsd", "optim.milestones": [4, 5], "optim.weight_decay": 0.001},
        {"method": "byot", "optim.milestones": [3], "optim.weight_decay": 0.001},
    ]
    values = [{**recipes[n % 2], "seed": n % 6, "optim.momentum": 0.5 + 0.1 * (n % 5)} for n in range(20)]
    (importance,) = compute_importances(space, make_history(*((each, each["seed"]) for each in values)))
    assert importance.shares is not None
    assert set(importance.shares) == {"seed", "optim.momentum", "method", "optim.milestones"}


def reason(folder: Path, *trials: tuple[dict[str, Any], float]) -> str:
    (importance,) = compute_importances(make_sweep(folder, RATE, ALPHA)[1], make_history(*trials))
    assert importance.shares is None
    return importance.reason


def test_too_few_trials_are_reported(tmp_path: Path) -> None:
    text = reason(tmp_path, *((values, 0.5) for values in sample_values(MIN_TRIALS - 1)))
    assert text == "9 finished trials are too few: at least 10 are needed"


def test_equal_results_are_reported(tmp_path: Path) -> None:
    assert reason(tmp_path, *((values, 0.5) for values in sample_values(10))) == (
        "valid/deepest_top1 is the same in all 10 finished trials"
    )


def test_equal_values_are_reported(tmp_path: Path) -> None:
    same = sample_values(1)[0]
    assert (
        reason(tmp_path, *((same, number / 20) for number in range(10)))
        == "all 10 finished trials have the same values"
    )
