"""Runs with further seeds: the best trials and the base config."""

from pathlib import Path

from launcher.config.launch_config import TuneOptions
from launcher.tune.driver.winners import BASE, Rerun, pending_reruns
from launcher.tune.records.history import History
from launcher.tune.space.load import read_space
from tests.helpers.sweeps import FakeSweep

SPACE = """\
trials: 3
parameters:
  train.batch: {const: 64}
  distill.alpha: {choice: [0.25, 0.5]}
  optim.nesterov: {const: true, when: {distill.alpha: 0.5}}
"""
OPTIONS = TuneOptions(trials=3, seeds=2, best=1)


def planned_reruns(new_sweep: FakeSweep) -> list[Rerun]:
    new_sweep.dir.space.write_text(SPACE)
    space = read_space(new_sweep.dir.space, config="cifar100-resnet8")
    return pending_reruns(History.read(new_sweep.dir.ledger, OPTIONS), new_sweep.dir, space)


def test_the_best_is_compared_with_the_first_config_under_the_constants_of_the_space(tmp_path: Path) -> None:
    new_sweep = FakeSweep(tmp_path / "sweep", OPTIONS)
    for number, (alpha, top1) in enumerate([(0.25, 0.2), (0.5, 0.4)]):
        new_sweep.add_trial(number, **{"train.batch": 64, "distill.alpha": alpha})
        new_sweep.end_trial(number, "finished", deepest_top1=top1)
    new_sweep.ledger.close()
    best, base = ("train.batch=64", "distill.alpha=0.5"), ("train.batch=64",)
    expected = [Rerun(name, seed, values) for seed in (1, 2) for name, values in (("0001", best), (BASE, base))]
    assert planned_reruns(new_sweep) == expected


def test_added_trials_do_not_change_the_seeds_of_reruns(tmp_path: Path) -> None:
    new_sweep = FakeSweep(tmp_path / "sweep", OPTIONS)
    new_sweep.add_trial(0, seed=3)
    new_sweep.end_trial(0, "finished", deepest_top1=0.2)
    assert {each.seed for each in planned_reruns(new_sweep)} == {4, 5}
    new_sweep.ledger.append_fact("confirmed", config=BASE, seed=4, metrics={})
    new_sweep.add_trial(1, seed=7)
    new_sweep.end_trial(1, "finished", deepest_top1=0.1)
    new_sweep.ledger.close()
    assert [(each.config, each.seed) for each in planned_reruns(new_sweep)] == [("0000", 4), ("0000", 5), (BASE, 5)]
