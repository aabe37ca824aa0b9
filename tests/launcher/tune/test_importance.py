"""Importances: the parameter that the result was made from comes first, and nothing is said where nothing can be."""

import random
from pathlib import Path
from typing import Any

import pytest

from launcher.tune.results.importance import FEWEST_TRIALS, importances
from tests.helpers.histories import TAPS, history_of, sweep_of

RATE, ALPHA = "optim.lr: {loguniform: [0.01, 1.0]}", "distill.alpha: {uniform: [0.0, 0.9]}"


def drawn(count: int) -> list[dict[str, Any]]:
    draws = random.Random(0)
    return [{"optim.lr": 10 ** draws.uniform(-2, 0), "distill.alpha": draws.uniform(0, 0.9)} for _ in range(count)]


@pytest.mark.parametrize(("mode", "expected"), [("max", "optim.lr"), ("min", "distill.alpha")])
def test_what_the_best_results_were_made_from_decides(tmp_path: Path, mode: str, expected: str) -> None:
    """Of the rates the largest quarter are the result, with the others it is -alpha."""
    _, space = sweep_of(tmp_path, RATE, ALPHA)
    values = drawn(80)
    results = [each["optim.lr"] if each["optim.lr"] > 0.3 else -each["distill.alpha"] for each in values]
    trials = zip(values, results, strict=True)
    (found,) = importances(space, history_of(*trials, mode=mode))
    assert found.shares is not None
    assert next(iter(found.shares)) == expected
    assert sum(found.shares.values()) == pytest.approx(1)


def test_a_placement_counts_by_its_taps(tmp_path: Path) -> None:
    _, space = sweep_of(tmp_path, TAPS)
    draws = random.Random(0)
    placed = [draws.sample(["stage1", "stage2", "stage3"], draws.randint(1, 3)) for _ in range(60)]
    (found,) = importances(
        space, history_of(*(({"model.branches": taps}, 0.1 * ("stage2" in taps)) for taps in placed))
    )
    assert found.shares is not None
    assert next(iter(found.shares)) == "model.branches: stage2"
    assert set(found.shares) == {f"model.branches: stage{number}" for number in (1, 2, 3)}


def test_a_conditional_parameter_decides_where_it_exists(tmp_path: Path) -> None:
    """Only with teacher deepest there is a rate, and there the result is the rate."""
    condition = "optim.lr: {loguniform: [0.01, 1.0], when: {distill.teacher: deepest}}"
    _, space = sweep_of(tmp_path, "distill.teacher: {choice: [deepest, ensemble]}", condition, ALPHA)
    trials = [({**values, "distill.teacher": "deepest"}, values["optim.lr"]) for values in drawn(60)]
    others = [
        ({"distill.alpha": values["distill.alpha"], "distill.teacher": "ensemble"}, 0.005) for values in drawn(60)
    ]
    (found,) = importances(space, history_of(*trials, *others))
    assert found.shares is not None
    assert set(found.shares) == {"optim.lr", "distill.alpha", "distill.teacher"}
    assert found.shares["optim.lr"] > 0.8


def test_every_kind_of_parameter_can_be_looked_at(tmp_path: Path) -> None:
    kinds = (
        "seed: {int: [0, 5]}",
        "optim.momentum: {quniform: [0.5, 0.9, 0.1]}",
        "method: {grid: [fmfsd, byot]}",
        "optim.milestones: {choice: [[4, 5], [3]]}",
        "optim.weight_decay: {const: 0.001}",
    )
    _, space = sweep_of(tmp_path, *kinds)
    recipes: list[dict[str, Any]] = [
        {"method": "fmfsd", "optim.milestones": [4, 5], "optim.weight_decay": 0.001},
        {"method": "byot", "optim.milestones": [3], "optim.weight_decay": 0.001},
    ]
    values = [{**recipes[n % 2], "seed": n % 6, "optim.momentum": 0.5 + 0.1 * (n % 5)} for n in range(20)]
    (found,) = importances(space, history_of(*((each, each["seed"]) for each in values)))
    assert found.shares is not None
    assert set(found.shares) == {"seed", "optim.momentum", "method", "optim.milestones"}


def reason(folder: Path, *trials: tuple[dict[str, Any], float]) -> str:
    (found,) = importances(sweep_of(folder, RATE, ALPHA)[1], history_of(*trials))
    assert found.shares is None
    return found.reason


def test_too_few_trials_are_told(tmp_path: Path) -> None:
    found = reason(tmp_path, *((values, 0.5) for values in drawn(FEWEST_TRIALS - 1)))
    assert found == "9 finished trials are too few: at least 10 are needed"


def test_equal_results_are_told(tmp_path: Path) -> None:
    assert reason(tmp_path, *((values, 0.5) for values in drawn(10))) == (
        "valid/deepest_top1 is the same in all 10 finished trials"
    )


def test_equal_values_are_told(tmp_path: Path) -> None:
    same = drawn(1)[0]
    assert (
        reason(tmp_path, *((same, number / 20) for number in range(10)))
        == "all 10 finished trials have the same values"
    )
