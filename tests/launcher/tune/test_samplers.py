"""Samplers: uniform random draws, complete grids, and the same draws after any interruption."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from launcher.config.launch_config import TuneOptions
from launcher.tune.records.history import Trial
from launcher.tune.sampling.sampler import (
    SEARCH_METHODS,
    Sampler,
    default_search,
    find_missing_package,
    find_search_problems,
)
from launcher.tune.space.draw import draw_random, enumerate_draws
from launcher.tune.space.parameters import Parameter, Space

TAPS = Parameter("model.branches", "subset", ("stage1", "stage2", "stage3"), min_size=1, max_size=2)
CONDITIONAL = (
    Parameter("distill.feature", "choice", ("batch_norm", "none")),
    Parameter("distill.beta", "loguniform", (1e-3, 0.3), when=(("distill.feature", ("batch_norm",)),)),
)
SPACE = Space("smoke", 40, (*CONDITIONAL, Parameter("distill.alpha", "uniform", (0.0, 0.9)), TAPS))
SEEDS = Parameter("seed", "grid", (0, 1, 2))


def loss(values: Mapping[str, Any]) -> float:
    return (values["distill.alpha"] - 0.3) ** 2 + 0.1 * ("stage2" in values["model.branches"])


def end_trial(trial: Trial, metrics: tuple[str, ...]) -> Trial:
    """Return the ended trial: most finish, some are pruned, some fail."""
    values = dict(zip(metrics, (loss(trial.values), trial.values["distill.alpha"]), strict=False))
    if trial.number % 7 == 3:
        return replace(trial, state="failed", cause="out of memory")
    if trial.number % 5 == 2:
        return replace(trial, state="pruned", reports={1: values})
    return replace(trial, state="finished", metrics=values)


def draw_trial(search: Sampler, number: int) -> Trial:
    """Draw a trial and return it as read from a ledger."""
    draw = search.draw(number)
    assert draw is not None
    return Trial(number, json.loads(json.dumps(draw.values)), "", json.loads(json.dumps(draw.sampler_state)))


def run_search(
    space: Space, options: TuneOptions, *, num_running: int = 1, cuts: tuple[int, ...] = ()
) -> tuple[dict[int, Trial], list[Trial]]:
    """Return all trials, `under_way` of them at a time, and the trials that a resumed sampler draws after each of the
    `cuts`."""
    search, ledger, again = Sampler(space, options), dict[int, Trial](), list[Trial]()
    for number in range(1, options.trials + 1):
        if (oldest := number - num_running) >= 1:
            ledger[oldest] = end_trial(ledger[oldest], options.metrics)
            search.report(ledger[oldest])
        if number in cuts:
            resumed = Sampler(space, options)
            for trial in ledger.values():
                resumed.restore(trial)
            again.append(draw_trial(resumed, number))
        ledger[number] = draw_trial(search, number)
    return ledger, again


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("num_running", [1, 3])
@pytest.mark.parametrize("search", [name for name in SEARCH_METHODS if name != "grid"])
def test_a_resumed_sampler_continues_as_if_uninterrupted(search: str, num_running: int) -> None:
    if package := find_missing_package(search):
        pytest.skip(f"{package} is not installed")
    trials = {"gp": 16}.get(search, 45)
    cuts = (2, 5, trials)
    space = replace(SPACE, parameters=(*SPACE.parameters, SEEDS))
    options = TuneOptions(trials=trials, search=search, metrics=("valid/loss",), modes=("min",), seed=5)
    assert not list(find_search_problems(search, options, space))
    ledger, again = run_search(space, options, num_running=num_running, cuts=cuts)
    for cut, trial in zip(cuts, again, strict=True):
        assert (trial.values, trial.sampler_state) == (ledger[cut].values, ledger[cut].sampler_state)
    assert all(set(trial.values) >= {"seed", "distill.alpha", "model.branches"} for trial in ledger.values())
    assert [trial.values["seed"] for trial in ledger.values()] == [number % 3 for number in range(trials)]


@pytest.mark.parametrize("search", ["tpe", "nsga2", "nsga3"])
def test_a_resumed_sampler_for_two_metrics_continues_as_if_uninterrupted(search: str) -> None:
    options = TuneOptions(trials=40, search=search, metrics=("valid/loss", "cost/params"), modes=("min", "max"))
    assert not list(find_search_problems(search, options, SPACE))
    ledger, (again,) = run_search(SPACE, options, num_running=2, cuts=(40,))
    assert (again.values, again.sampler_state) == (ledger[40].values, ledger[40].sampler_state)


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_subsets_have_allowed_sizes_and_order_and_conditions_hold(search: str) -> None:
    options = TuneOptions(trials=30, search=search, metrics=("valid/loss",), modes=("min",))
    for trial in run_search(SPACE, options)[0].values():
        assert trial.values["model.branches"] in list(TAPS.enumerate_values())
        assert ("distill.beta" in trial.values) == (trial.values["distill.feature"] == "batch_norm")


def test_tpe_draws_better_than_random() -> None:
    def mean_of_last(search: str) -> float:
        options = TuneOptions(trials=60, search=search, metrics=("valid/loss",), modes=("min",))
        return sum(loss(trial.values) for trial in list(run_search(SPACE, options)[0].values())[40:]) / 20

    assert mean_of_last("tpe") < mean_of_last("random") / 2


def test_a_random_draw_depends_only_on_seed_and_number() -> None:
    options = TuneOptions(trials=9, search="random", seed=3)
    one, other = Sampler(SPACE, options), Sampler(SPACE, options)
    assert [one.draw(number) for number in range(9)][7] == other.draw(7)
    assert other.draw(7) != other.draw(8)
    assert Sampler(SPACE, replace(options, seed=4)).draw(7) != other.draw(7)


def test_random_subsets_are_uniform_over_all_allowed_ones() -> None:
    """6000 draws of 6 subsets: 1000 each, within five standard deviations of 29."""
    search = Sampler(Space("smoke", 1, (TAPS,)), TuneOptions(trials=1, search="random"))
    draws = (search.draw(number) for number in range(6000))
    counts = Counter(tuple(draw.values["model.branches"]) for draw in draws if draw is not None)
    assert len(counts) == 6
    assert all(855 < count < 1145 for count in counts.values())


def test_a_subset_of_a_forbidden_size_is_repaired() -> None:
    from launcher.tune.sampling.optuna_sampler import repair_subset_sizes

    space = Space("smoke", 1, (replace(TAPS, min_size=2), Parameter("distill.alpha", "uniform", (0, 1))))
    for number, taps in enumerate(([], ["stage3"], ["stage1", "stage2", "stage3"])):
        values = repair_subset_sizes(space, {"model.branches": taps, "distill.alpha": 0.5}, seed=0, number=number)
        assert (len(values["model.branches"]), values["distill.alpha"]) == (2, 0.5)
        assert sorted(values["model.branches"]) == values["model.branches"]
        assert set(values["model.branches"]) <= set(taps) or set(values["model.branches"]) >= set(taps)


FINITE = (
    Parameter("a", "choice", (1, 2, 3)),
    Parameter("b", "int", (0, 4), when=(("a", (1, 2)),)),
    Parameter("c", "subset", ("x", "y", "z"), min_size=0, max_size=2, when=(("b", (3,)), ("optim.nesterov", (False,)))),
    Parameter("d", "quniform", (0.1, 0.9, 0.2), when=(("c", (["x"], ["x", "y"])),)),
    Parameter("e", "const", ("here",)),
    Parameter("f", "grid", (0, 1), when=(("optim.nesterov", (True,)),)),
)
"""Counted by hand: a 3 alone; a 1 or 2 with four b and no c; with b 3, five c and no d, and two c with five d each."""


def test_a_finite_space_knows_its_size_and_a_grid_covers_it() -> None:
    space = Space("smoke", 1, FINITE[::-1], {"optim.nesterov": False})
    search = Sampler(space, TuneOptions(trials=31, search="grid"))
    draws = [search.draw(number) for number in range(1, 40)]
    assert space.size() == 1 + 2 * (4 + 5 + 2 * 5) == 39
    assert len({json.dumps(draw) for draw in enumerate_draws(space)}) == 39
    assert [draw.values for draw in draws if draw is not None] == list(enumerate_draws(space))
    assert search.draw(40) is None
    assert all(list(draw) == [key for key in "fedcba" if key in draw] for draw in enumerate_draws(space))


def test_the_size_of_a_space_is_computed_without_enumeration() -> None:
    large = Parameter("seed", "int", (0, 10**12 - 1))
    following = Parameter("optim.lr", "choice", (0.1, 0.2), when=(("seed", (7,)),))
    assert Space("smoke", 1, (following, large)).size() == 10**12 + 1
    assert SPACE.size() is None
    assert Space("smoke", 1, (Parameter("x", "uniform", (0, 1), when=(("method", ("byot",)),)),)).size() == 1


def test_quantized_values_are_exact_decimals() -> None:
    assert list(Parameter("x", "quniform", (0.1, 0.9, 0.2)).enumerate_values()) == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert list(Parameter("x", "quniform", (1, 8, 3)).enumerate_values()) == [1, 4, 7]
    quarter = Space("smoke", 1, (Parameter("x", "quniform", (0.1, 0.9, 0.2)), SPACE.parameters[2], TAPS))
    options = TuneOptions(trials=20, search="tpe", metrics=("valid/loss",), modes=("min",))
    assert {trial.values["x"] for trial in run_search(quarter, options)[0].values()} == {0.1, 0.3, 0.5, 0.7, 0.9}


def test_random_draws_are_within_their_range() -> None:
    rng, learning_rate = random.Random(0), Parameter("optim.lr", "loguniform", (1e-4, 1.0))
    rates = [learning_rate.sample(rng) for _ in range(1000)]
    assert all(1e-4 <= value <= 1 for value in rates)
    assert 400 < sum(value < 1e-2 for value in rates) < 600, "half of the orders of magnitude"
    assert draw_random(SPACE, rng, {"distill.alpha": 0.25})["distill.alpha"] == 0.25


def test_a_missing_or_nan_metric_counts_as_a_failed_trial() -> None:
    options = TuneOptions(trials=2, search="tpe", metrics=("valid/loss",), modes=("min",))
    search = Sampler(SPACE, options)
    for number, metrics in enumerate(({"valid/loss": float("nan")}, {}, {"valid/loss": 1.0}), 1):
        search.report(replace(draw_trial(search, number), state="finished", metrics=metrics))
    assert search.draw(4) is not None


@pytest.mark.parametrize(
    ("search", "options", "parameters", "expected"),
    [
        ("tpr", {}, SPACE.parameters, "--search tpr: is unknown; did you mean tpe? Known methods: random, grid, tpe"),
        (
            "grid",
            {},
            SPACE.parameters,
            "--search grid: needs finite parameters, found continuous distill.alpha, distill.beta",
        ),
        ("grid", {"trials": 5}, (TAPS,), "--trials 5: fewer than the 6 combinations of the grid: set --trials 6"),
        ("tpe", {"trials": 2}, (*CONDITIONAL, SEEDS), "--trials 2: fewer than the 3 combinations of the grid"),
        ("cmaes", {}, CONDITIONAL, "--search cmaes: needs numeric ranges without a condition, found none"),
        ("cmaes", {"metrics": ("a", "b")}, SPACE.parameters, "--search cmaes: optimizes one metric, found 2"),
    ],
)
def test_unsuitable_searches_are_refused(
    search: str, options: dict[str, Any], parameters: tuple[Parameter, ...], expected: str
) -> None:
    tune_options = TuneOptions(**{"trials": 9, "search": search, **options})
    messages = [str(problem) for problem in find_search_problems(search, tune_options, Space("smoke", 9, parameters))]
    assert any(text.startswith(expected) for text in messages), messages


def test_a_search_without_its_package_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.tune.sampling.sampler.find_spec", lambda name: None)
    assert [find_missing_package(name) for name in ("random", "grid", "tpe")] == ["", "", "optuna"]
    assert "needs optuna, which is not installed" in str(*find_search_problems("tpe", TuneOptions(trials=9), SPACE))


def test_the_default_search_is_grid_for_grids_and_tpe_otherwise() -> None:
    only = Parameter("model.sem", "choice", ("sge",))
    assert default_search(Space("smoke", 9, (SEEDS, only))) == "grid"
    assert default_search(Space("smoke", 9, (SEEDS, TAPS))) == "tpe"


@pytest.mark.usefixtures("processes")
def test_random_and_grid_need_no_optuna() -> None:
    code = (
        "import sys; from launcher.config.launch_config import TuneOptions;"
        "from launcher.config.packaged_files import find_space;"
        "from launcher.tune.sampling.sampler import Sampler; from launcher.tune.space.load import read_space;"
        "space = read_space(find_space('temperature'));"
        "[Sampler(space, TuneOptions(trials=12, search=name)).draw(1) for name in ('random', 'grid')];"
        "print({'optuna', 'numpy', 'torch', 'ray'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_a_ledger_contains_no_pickles() -> None:
    """Optuna stores CMA-ES's state as a pickle; the ledger stores instead which results were new."""
    if package := find_missing_package("cmaes"):
        pytest.skip(f"{package} is not installed")
    options = TuneOptions(trials=30, search="cmaes", metrics=("valid/loss",), modes=("min",))
    memories = [trial.sampler_state for trial in run_search(SPACE, options)[0].values()]
    assert memories[0] == {"new": []}
    assert all(memory == {"new": [number]} for number, memory in enumerate(memories[1:], 1))
