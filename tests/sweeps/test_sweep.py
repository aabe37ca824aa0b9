"""Complete sweeps: their files, trials as ordinary runs, and early stopping."""

import csv
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import yaml

from fmfsd.system.atomic_files import read_json
from launcher.run_dir.sweep_dir import SweepDir
from tests.helpers.processes import command, run_command
from tests.helpers.runs import DIRECT
from tests.helpers.searches import EPOCH_STEPS, facts_of_kind, run_tune, sweep_arguments, trial_results
from tests.helpers.stub_training import StubTraining

RATES = (0.05, 1.0e30, 1.0e-6, 2.0e-6)


def test_every_trial_has_a_run_a_table_row_and_a_result(trained: SweepDir) -> None:
    rows = list(csv.DictReader(trained.table.read_text().splitlines()))
    summary = read_json(trained.summary)
    assert [row["trial"] for row in rows] == ["0001", "0002"]
    for row, (state, metrics) in zip(rows, trial_results(trained).values(), strict=True):
        outcome = read_json(trained.trial(row["trial"]).outcome)
        assert (state, outcome["state"]) == ("finished", "finished")
        assert outcome["metrics"]["valid"]["deepest_top1"] == metrics["valid/deepest_top1"]
        assert float(row["valid/deepest_top1"]) == metrics["valid/deepest_top1"]
    assert summary["best"]["metrics"]["valid/deepest_top1"] == max(float(row["valid/deepest_top1"]) for row in rows)
    assert trained.report.read_text().startswith("<!DOCTYPE html>")


def test_the_test_set_is_read_only_for_the_winner(trained: SweepDir) -> None:
    best = read_json(trained.summary)["best"]["trial"]
    assert [f"{fact['trial']:04d}" for fact in facts_of_kind(trained, "tested")] == [best]
    for run in trained.trials.iterdir():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {line["split"] for line in lines} == {"train", "valid"}
        assert (run / "evaluation" / "test.json").exists() == (run.name == best)


def test_a_trial_is_reproducible_without_ray(trained: SweepDir, tmp_path: Path) -> None:
    trial = trained.trial("0002")
    again = run_command("fmfsd-launch", str(trial.config), *DIRECT, "--run-dir", "again", "--gpus", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    one, other = (read_json(path)["metrics"] for path in (tmp_path / "again" / "outcome.json", trial.outcome))
    assert (one["valid"], one["train"]["loss"]) == (other["valid"], other["train"]["loss"])


def test_the_best_config_is_ready_to_be_launched(trained: SweepDir, tmp_path: Path) -> None:
    best = read_json(trained.summary)["best"]
    content = yaml.safe_load(trained.best.read_text())
    assert content["distill"]["alpha"] == best["values"]["distill.alpha"]
    answer = run_command("fmfsd-launch", str(trained.best), "--dry-run", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr


def test_no_files_of_ray_are_left_in_the_sweep(trained: SweepDir) -> None:
    assert not trained.token.exists()
    assert not list(trained.path.glob(".tune*"))


def test_two_concurrent_sweeps_draw_the_same_values(trained: SweepDir, undisturbed: SweepDir) -> None:
    sweeps = trained, undisturbed
    drivers = [read_json(sweep.coordinator_dir.attempt(1)) for sweep in sweeps]
    assert max(driver["started"] for driver in drivers) < min(driver["ended"] for driver in drivers)
    one, other = ([fact["values"] for fact in facts_of_kind(sweep, "asked")] for sweep in sweeps)
    assert [values["distill.alpha"] for values in one] == [values["optim.weight_decay"] for values in other[:2]]


def test_all_trials_of_the_pareto_front_are_tested(undisturbed: SweepDir) -> None:
    ended = trial_results(undisturbed)
    cheapest, best = (
        pick(ended, key=lambda number: ended[number][1][metric])
        for pick, metric in ((min, "cost/train_macs"), (max, "valid/deepest_top1"))
    )
    front = read_json(undisturbed.summary)["front"]
    assert {f"{cheapest:04d}", f"{best:04d}"} <= set(front)
    assert sorted(f"{fact['trial']:04d}" for fact in facts_of_kind(undisturbed, "tested")) == sorted(front)


def test_a_finished_sweep_is_resumed_with_more_trials_and_further_seeds(
    undisturbed: SweepDir, stub: StubTraining, tmp_path: Path
) -> None:
    sweep = SweepDir(tmp_path / "sweep")
    shutil.copytree(undisturbed.path, sweep.path)
    before, more = trial_results(sweep), ("--trials", "4", "--seeds", "2", "--best", "1")
    answer = run_tune("--resume", str(sweep.path), *more, cwd=tmp_path, env=stub.env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    after, confirmed = trial_results(sweep), facts_of_kind(sweep, "confirmed")
    assert (len(after), len(facts_of_kind(sweep, "ended"))) == (4, 4)
    assert before.items() <= after.items()
    best = read_json(sweep.summary)["best"]["trial"]
    assert f"best: trial {best}: valid/deepest_top1 " in answer.stdout
    assert re.search(rf"trial {best}: \S+ points of test/deepest_top1 to base, 95 % interval", answer.stdout)
    assert {(fact["config"], fact["seed"]) for fact in confirmed} == {(best, 1), (best, 2), ("base", 1), ("base", 2)}
    assert all("test/deepest_top1" in fact["metrics"] for fact in confirmed)


def test_failed_and_pruned_trials_are_marked_and_the_sweep_continues(
    stub: StubTraining, tiny_root: Path, tmp_path: Path
) -> None:
    space = f"config: cifar100-resnet18\ntrials: 5\nparameters:\n  optim.lr: {{grid: {list(RATES)}}}\n"
    more = ("--scheduler", "asha", "--concurrent", "1", "--search", "grid")
    for trial in ("0003", "0004"):  # so that each is still running when the scheduler decides
        stub.hold(trial, attempt=1, step=2 * EPOCH_STEPS)
    changes = ("train.epochs=3", "train.max_steps=null", "optim.milestones=[2]")
    argv = sweep_arguments(tiny_root, tmp_path, *more, space=space, changes=changes)
    answer = run_tune(*argv, cwd=tmp_path, env=stub.env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    sweep = SweepDir(tmp_path / "sweep")
    states = {trial: state for trial, (state, _) in trial_results(sweep).items()}
    assert states == {1: "finished", 2: "failed", 3: "pruned", 4: "pruned"}
    assert [read_json(sweep.trial(trial).outcome)["state"] for trial in ("0003", "0004")] == ["interrupted"] * 2
    (cause,) = [fact["cause"] for fact in facts_of_kind(sweep, "ended") if fact["state"] == "failed"]
    assert "not finite" in cause
    assert cause in answer.stdout
    assert cause.splitlines()[0][:40] in sweep.report.read_text()
    assert "the space has only 4 different configs" in answer.stdout


def test_an_unknown_metric_is_refused_with_the_available_ones(tiny_root: Path, tmp_path: Path) -> None:
    answer = run_tune(*sweep_arguments(tiny_root, tmp_path), "--metric", "valid/branch7_top1", cwd=tmp_path)
    assert (answer.returncode, answer.stdout, len(answer.stderr.splitlines())) == (2, "", 1)
    assert (
        "not every trial writes it, because model.branches varies; written by every trial: valid/deepest_top1"
        in answer.stderr
    )


LIMITED = """\
umask 027
ulimit -v 33554432
{command} "$@"
exit $?
"""
"""A script for `uv run`: 32 GiB of address space suffice for Ray and training, but not for V8."""


def test_a_sweep_under_uv_run_without_v8_finishes_and_omits_charts(
    stub: StubTraining, tiny_root: Path, tmp_path: Path
) -> None:
    """Ray recognizes `uv run` by the command line of a parent process, which this shell imitates."""
    (tmp_path / "run").write_text(LIMITED.format(command=command("fmfsd-tune")))
    argv = ["uv", "run", *sweep_arguments(tiny_root, tmp_path, "--trials", "1")]
    options: Any = {"executable": "/bin/sh", "cwd": tmp_path, "env": {**os.environ, **stub.env}}
    answer = subprocess.run(argv, **options, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    sweep = SweepDir(tmp_path / "sweep")
    assert [state for state, _ in trial_results(sweep).values()] == ["finished"]
    assert sweep.coordinator_dir.last_attempt() == 1
    page = sweep.report.read_text()
    assert "This chart is omitted: the chart renderer was ended by SIGTRAP" in page
    assert "<svg" not in page
    assert stat.S_IMODE(sweep.report.stat().st_mode) == 0o640
    assert "best: trial 0001: valid/deepest_top1 " in answer.stdout
    assert f"report: {sweep.report}" in answer.stdout.replace("\n", "")


def test_a_trial_that_rays_memory_monitor_kills_fails_with_its_reason(
    stub: StubTraining, tiny_root: Path, tmp_path: Path
) -> None:
    stub.hold("0001", attempt=1, step=1)
    limits = ("--env", "RAY_memory_usage_threshold=0.001", "--env", "RAY_memory_monitor_refresh_ms=5000")
    argv = sweep_arguments(tiny_root, tmp_path, "--trials", "1", "--max-failures", "0", *limits)
    answer = run_tune(*argv, cwd=tmp_path, env=stub.env)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    sweep = SweepDir(tmp_path / "sweep")
    (cause,) = [fact["cause"] for fact in facts_of_kind(sweep, "ended")]
    assert "killed due to the node running low on memory" in cause
    assert len(cause.splitlines()) == 1
    assert sweep.coordinator_dir.last_attempt() == 1
    assert "low on memory" in answer.stdout
