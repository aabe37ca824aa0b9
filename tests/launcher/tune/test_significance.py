"""Significance of a gain: paired differences of the same seed, corrected for the number of configs."""

import pytest

from launcher.config.launch_config import TuneOptions
from launcher.tune.records.history import History
from launcher.tune.results.significance import compare_with_base
from tests.helpers.histories import TOP1, add_confirmations

NOISE = (0.0, 0.004, -0.003, 0.002, -0.001)


def history(mode: str = "max", **results: tuple[float, ...]) -> History:
    """Return a history with these results by config; names of trials are prefixed with t."""
    runs = History(TuneOptions(trials=1, metrics=(TOP1,), modes=(mode,)))  # type: ignore[arg-type]
    for config, values in results.items():
        add_confirmations(runs, config.removeprefix("t"), values)
    return runs


def around(mean: float, noise: tuple[float, ...] = NOISE) -> tuple[float, ...]:
    return tuple(mean + each for each in noise)


def test_effects_of_a_seed_on_all_configs_are_not_noise() -> None:
    """Pairs differ by 1, 1.1, 0.9, 1 and 1 points, although runs of one config differ by 4."""
    shared = (0.0, 0.04, -0.02, 0.01, -0.01)
    gains = (0.01, 0.011, 0.009, 0.01, 0.01)
    mine = tuple(0.7 + each + gain for each, gain in zip(shared, gains, strict=True))
    best, base = compare_with_base(history(t0003=mine, base=around(0.7, shared)))
    assert (best.config, base.config) == ("0003", "base")
    assert best.finding.startswith(f"+1.00 points of {TOP1} to base, 95 % interval +0.91 to +1.09, p = ")
    assert best.finding.endswith(": the gain is significant")
    assert best.metrics[TOP1].deviation == pytest.approx(base.metrics[TOP1].deviation, rel=0.1)


def test_an_interval_around_zero_may_be_noise() -> None:
    best = compare_with_base(history(t0003=(0.71, 0.70, 0.72), base=(0.70, 0.71, 0.70)))[0]
    assert best.finding.endswith(": the gain may be noise")


def test_a_loss_or_no_difference_is_never_called_a_gain() -> None:
    worse, equal = (0.60, 0.601, 0.599), (0.70, 0.70, 0.70)
    by_config = {each.config: each for each in compare_with_base(history(t1=worse, t2=equal, base=equal))}
    assert by_config["1"].finding.endswith("it is significantly worse than base")
    assert by_config["2"].finding.endswith("there is no gain")


def test_more_configs_make_the_same_gain_less_significant() -> None:
    """p is below 0.05 for one comparison, and above for three."""
    mine, base = (0.71, 0.72, 0.73, 0.7, 0.72), (0.7,) * 5
    alone = compare_with_base(history(t1=mine, base=base))[0]
    of_three = compare_with_base(history(t1=mine, t2=base, t3=base, base=base))[0]
    assert alone.p is not None
    assert alone.p < 0.05
    assert of_three.p == pytest.approx(3 * alone.p)
    assert alone.finding.endswith("the gain is significant")
    assert "after Holm's correction for 3 comparisons: the gain may be noise" in of_three.finding


def test_with_mode_min_a_decrease_is_the_gain() -> None:
    mine, base = (0.5, 0.51, 0.49, 0.5), (0.6, 0.61, 0.59, 0.605)
    best, *_ = compare_with_base(history(mode="min", t1=mine, t2=base, base=base))
    assert (best.config, best.finding.rpartition(": ")[2]) == ("1", "the gain is significant")


def test_one_seed_gives_no_estimate_of_noise() -> None:
    best = compare_with_base(history(t1=(0.8,), base=(0.7,)))[0]
    assert best.finding == f"+10.00 points of {TOP1} to base with one seed, too few to distinguish a gain from noise"
    assert best.p is None


def test_without_a_common_seed_nothing_is_compared() -> None:
    best = compare_with_base(history(t1=(0.8, 0.8)))[0]
    assert (best.difference, best.finding) == (None, "no seed in common with the base config: no comparison")


def test_a_run_that_was_recorded_twice_counts_once() -> None:
    runs = history(t1=(0.8, 0.9), base=(0.7, 0.7))
    add_confirmations(runs, "1", (0.8, 0.9))
    assert compare_with_base(runs)[0].seeds == (100, 101)


def test_the_test_set_decides_if_all_runs_were_tested() -> None:
    """On the samples by which it was chosen, a config looks better than it is."""
    runs = History(TuneOptions(trials=1))
    for seed in (1, 2, 3):
        for config, top1, test_top1 in (("1", 0.8, 0.7), ("base", 0.7, 0.7)):
            noise = {"1": 0.001, "base": 0.002}[config] * (-1) ** seed
            metrics = {TOP1: top1 + noise, "test/deepest_top1": test_top1 + noise}
            runs.add({"fact": "confirmed", "config": config, "seed": seed, "metrics": metrics})
    assert compare_with_base(runs)[0].judged_by == "test/deepest_top1"
    assert "the gain is significant" not in compare_with_base(runs)[0].finding
    add_confirmations(runs, "1", [0.8])
    assert compare_with_base(runs)[0].judged_by == TOP1


def test_a_missing_cost_metric_is_not_used() -> None:
    runs = History(TuneOptions(trials=1, metrics=("cost/train_macs", TOP1), modes=("min", "max")))
    add_confirmations(runs, "1", [0.8])
    assert compare_with_base(runs)[0].judged_by == TOP1
    alone = History(TuneOptions(trials=1, metrics=("cost/train_macs",), modes=("min",)))
    add_confirmations(alone, "1", [0.8])
    assert compare_with_base(alone) == []


def test_without_runs_with_further_seeds_there_are_no_findings() -> None:
    assert compare_with_base(history()) == []
