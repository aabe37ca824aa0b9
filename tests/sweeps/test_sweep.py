"""A whole search: what it leaves, and that each of its trials is an ordinary run."""

import csv
import json
import shutil
from pathlib import Path

import yaml

from fmfsd.files import read_json
from launcher.tune.sweep_dir import SweepDir
from tests.helpers.processes import run_command
from tests.helpers.searches import SPACE, arguments, known, results, tune


def test_every_trial_has_its_run_its_row_and_its_result(undisturbed: SweepDir) -> None:
    rows = list(csv.DictReader(undisturbed.table.read_text().splitlines()))
    told = read_json(undisturbed.summary)
    assert [row["trial"] for row in rows] == ["0001", "0002", "0003"]
    for row, (state, metrics) in zip(rows, results(undisturbed).values(), strict=True):
        outcome = read_json(undisturbed.trial(row["trial"]).outcome)
        assert (state, outcome["state"]) == ("finished", "finished")
        assert outcome["metrics"]["valid"]["deepest_top1"] == metrics["valid/deepest_top1"]
        assert float(row["valid/deepest_top1"]) == metrics["valid/deepest_top1"]
    assert told["best"]["metrics"]["valid/deepest_top1"] == max(float(row["valid/deepest_top1"]) for row in rows)
    assert undisturbed.report.read_text().startswith("<!DOCTYPE html>")


def test_the_test_set_is_read_once_and_for_the_winner_alone(undisturbed: SweepDir) -> None:
    best = read_json(undisturbed.summary)["best"]["trial"]
    assert [f"{fact['trial']:04d}" for fact in known(undisturbed, "tested")] == [best]
    for run in undisturbed.trials.iterdir():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {line["split"] for line in lines} == {"train", "valid"}
        assert (run / "evaluation" / "test.json").exists() == (run.name == best)


def test_a_trial_is_reproducible_without_ray(undisturbed: SweepDir, tmp_path: Path) -> None:
    trial = undisturbed.trial("0002")
    again = run_command("fmfsd-launch", str(trial.config), "--run-dir", "again", "--gpus", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    one, other = (read_json(path)["metrics"] for path in (tmp_path / "again" / "outcome.json", trial.outcome))
    assert (one["valid"], one["train"]["loss"]) == (other["valid"], other["train"]["loss"])


def test_the_best_config_is_ready_to_be_launched(undisturbed: SweepDir, tmp_path: Path) -> None:
    best = read_json(undisturbed.summary)["best"]
    content = yaml.safe_load(undisturbed.best.read_text())
    assert content["distill"]["alpha"] == best["values"]["distill.alpha"]
    answer = run_command("fmfsd-launch", str(undisturbed.best), "--dry-run", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr


def test_nothing_of_ray_is_left_in_the_sweep(undisturbed: SweepDir) -> None:
    assert not undisturbed.token.exists()
    assert not list(undisturbed.path.glob(".tune*"))


def test_two_sweeps_run_beside_each_other_and_draw_alike(two_sweeps: tuple[SweepDir, SweepDir]) -> None:
    one, other = two_sweeps
    assert one.path != other.path
    assert results(one) == results(other)


def test_a_finished_sweep_goes_on_with_more_trials_and_confirms_its_best(undisturbed: SweepDir, tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "sweep")
    shutil.copytree(undisturbed.path, sweep.path)
    before = results(sweep)
    answer = tune("--resume", str(sweep.path), "--trials", "4", "--seeds", "2", "--best", "1", cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    after, confirmed = results(sweep), known(sweep, "confirmed")
    assert (len(after), len(known(sweep, "ended"))) == (4, 4)
    assert before.items() <= after.items()
    best = read_json(sweep.summary)["best"]["trial"]
    assert {(fact["config"], fact["seed"]) for fact in confirmed} == {(best, 1), (best, 2), ("base", 1), ("base", 2)}
    assert all("test/deepest_top1" in fact["metrics"] for fact in confirmed)


def test_a_trial_that_fails_is_marked_and_the_search_goes_on(tiny_root: Path, tmp_path: Path) -> None:
    space = SPACE.replace("  distill.alpha: {uniform: [0.0, 0.9]}", "  optim.lr: {grid: [1.0e+30, 0.05]}")
    answer = tune(*arguments(tiny_root, tmp_path, "--trials", "2", "--max-failures", "0", space=space), cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    sweep = SweepDir(tmp_path / "sweep")
    states = {trial: state for trial, (state, _) in results(sweep).items()}
    assert states == {1: "failed", 2: "finished"}
    (cause,) = [fact["cause"] for fact in known(sweep, "ended") if fact["state"] == "failed"]
    assert "not finite" in cause
    assert cause in answer.stdout
    assert cause.splitlines()[0][:40] in sweep.report.read_text()


def test_equal_configs_are_run_once_and_several_metrics_give_a_front(tiny_root: Path, tmp_path: Path) -> None:
    places = "model.branches: {subset: {of: [stage1, stage2], max: 1}}"
    space = f"config: cifar100-resnet18\ntrials: 8\nparameters:\n  {places}\n"
    goals = ("--metric", "valid/deepest_top1", "--metric", "cost/train_macs")
    answer = tune(*arguments(tiny_root, tmp_path, *goals, "--search", "tpe", space=space), cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    sweep = SweepDir(tmp_path / "sweep")
    ended = results(sweep)
    assert len(ended) == len(list(sweep.trials.iterdir())) == 2
    assert "2 trials are all that the space has" in answer.stdout
    cheapest = min(ended, key=lambda number: ended[number][1]["cost/train_macs"])
    front = read_json(sweep.summary)["front"]
    assert f"{cheapest:04d}" in front
    assert sorted(f"{fact['trial']:04d}" for fact in known(sweep, "tested")) == sorted(front)


def test_a_scheduler_stops_trials_early_and_nothing_of_them_goes_on(tiny_root: Path, tmp_path: Path) -> None:
    rates = [0.05, 1.0e-6, 2.0e-6]
    space = f"config: cifar100-resnet18\ntrials: 3\nparameters:\n  optim.lr: {{grid: {rates}}}\n"
    changes = ("train.epochs=3", "train.max_steps=null", "optim.milestones=[2]")
    more = ("--scheduler", "asha", "--concurrent", "1", "--search", "grid")
    answer = tune(*arguments(tiny_root, tmp_path, *more, space=space, changes=changes), cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    sweep = SweepDir(tmp_path / "sweep")
    pruned = [trial for trial, (state, _) in results(sweep).items() if state == "pruned"]
    assert pruned
    for number in pruned:
        assert read_json(sweep.trial(f"{number:04d}").outcome)["state"] == "interrupted"
