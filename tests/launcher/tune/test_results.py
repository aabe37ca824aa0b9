"""Results of a sweep: files that match its ledger, and a best config that can be launched."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import load_config
from fmfsd.report.write import write_report
from launcher.config.launch_config import TuneOptions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History
from launcher.tune.results.write import write_final_results, write_results
from launcher.tune.results.write import write_report as write_sweep_report
from launcher.tune.space.load import Space
from tests.helpers.histories import TAPS, TOP1, add_confirmations, add_trial, end_trial, make_history, make_sweep

pytestmark = pytest.mark.usefixtures("charts_in_process")

SPACE = (
    TAPS,
    "distill.feature: {choice: [batch_norm, none]}",
    "distill.beta: {uniform: [0.0, 0.3], when: {distill.feature: batch_norm}}",
)
GOOD: dict[str, Any] = {"model.branches": ["stage1", "stage3"], "distill.feature": "batch_norm", "distill.beta": 1e-05}
PLAIN: dict[str, Any] = {"model.branches": ["stage2"], "distill.feature": "none"}
HOSTILE = "</pre><script>alert('1')</script>\x00"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    return write_sweep(tmp_path)[0]


def write_sweep(folder: Path) -> tuple[SweepDir, Space, History]:
    """Write all results of a sweep with a trial of each state, a repeated trial, and runs with further seeds."""
    sweep, space = make_sweep(folder, *SPACE)
    history = History(TuneOptions(trials=6))
    for number, values in enumerate((PLAIN, GOOD, PLAIN, PLAIN, PLAIN)):
        add_trial(history, number, values)
    end_trial(history, 0, "finished", [{TOP1: 0.25}, {TOP1: 0.5}])
    end_trial(history, 1, "finished", [{TOP1: 0.5, "valid/loss": 2.0}, {TOP1: 0.75, "valid/loss": float("nan")}])
    end_trial(history, 2, "pruned", [{TOP1: 0.125}])
    end_trial(history, 3, "failed", [], HOSTILE)
    history.add({"fact": "repeated", "trial": 5, "values": GOOD, "digest": "1", "memory": {}, "of": 1})
    add_confirmations(history, "0001", [0.7, 0.71, 0.705])
    add_confirmations(history, "base", [0.5, 0.51, 0.505])
    history.add({"fact": "tested", "trial": 1, "metrics": {"test/deepest_top1": 0.7}})
    write_final_results(sweep, space, history, held_out=5200)
    write_report([sweep.path], None)
    return sweep, space, history


def summary(sweep: SweepDir) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(sweep.summary.read_text(), parse_constant=refuse)
    assert isinstance(content, dict)
    return content


def test_the_best_trial_comes_first_in_the_json(sweep: SweepDir) -> None:
    name, best = next(iter(summary(sweep).items()))
    assert name == "best"
    assert (best["trial"], best["values"], best["metrics"]) == ("0001", GOOD, {TOP1: 0.75, "valid/loss": None})
    assert best["path"] == str(sweep.trial("0001").path)
    assert best["command"] == f"fmfsd-launch {sweep.best}"


def test_every_trial_is_listed_with_its_state(sweep: SweepDir) -> None:
    content = summary(sweep)
    states = [trial["state"] for trial in content["trials"]]
    assert states == ["finished", "finished", "pruned", "failed", "asked", "finished"]
    assert content["counts"] == {"finished": 2, "pruned": 1, "failed": 1, "asked": 1, "repeated": 1}
    assert (content["ranked"], content["trials"][5]["repeats"]) == (["0001", "0000"], "0001")
    assert content["trials"][0]["reports"] == [{TOP1: 0.25, "epoch": 1}, {TOP1: 0.5, "epoch": 2}]
    assert [each["config"] for each in content["confirmations"]] == ["0001", "base"]
    assert content["tested"] == {"0001": {"test/deepest_top1": 0.7}}


def test_the_command_of_a_trial_runs_it_again(sweep: SweepDir) -> None:
    command = summary(sweep)["trials"][0]["command"]
    assert (
        command == f"""fmfsd-launch {sweep.config} --set 'model.branches=["stage2"]' --set 'distill.feature="none"'"""
    )


def test_the_table_has_a_row_per_trial_with_empty_cells_for_missing_parameters(sweep: SweepDir) -> None:
    with sweep.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0000", "0001", "0002", "0003", "0004", "0005"]
    assert (rows[0]["distill.beta"], rows[1]["distill.beta"]) == ("", "1e-05")
    assert json.loads(rows[1]["model.branches"]) == ["stage1", "stage3"]
    assert (rows[0]["distill.feature"], rows[2][TOP1], rows[3]["cause"]) == ("none", "0.125", HOSTILE)


def test_the_best_config_trains_on_all_images_with_the_best_values(sweep: SweepDir) -> None:
    config = load_config(str(sweep.best))
    assert (config.data.valid, config.train.evaluate_test) == (0, True)
    assert (config.model.branches, config.distill.beta) == (("stage1", "stage3"), 1e-05)
    base = load_config(str(sweep.config))
    assert (config.optim, config.data.root, config.train.epochs) == (base.optim, base.data.root, base.train.epochs)


def test_the_best_config_has_a_header_with_command_and_result(sweep: SweepDir) -> None:
    launch, left_out, *_ = sweep.best.read_text().splitlines()
    assert launch == f"# fmfsd-launch {sweep.best} · 1 min 0 s as trial 0001 of a sweep · {TOP1} 75.00 %"
    assert left_out == "# Without keys that only the sweep needed: data.valid (5200), train.evaluate_test (false)."


def test_samples_that_the_user_held_out_stay_held_out(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, *SPACE)
    write_results(sweep, space, make_history((PLAIN, 0.5)), held_out=0)
    assert load_config(str(sweep.best)).data.valid == 5200


def test_with_several_metrics_the_best_trial_is_the_one_with_the_best_first_metric(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, *SPACE)
    history = History(TuneOptions(trials=3, metrics=(TOP1, "cost/train_macs"), modes=("max", "min")))
    for number, (top1, macs) in enumerate(((0.5, 1e8), (0.7, 3e8), (0.6, 4e8))):
        add_trial(history, number, PLAIN)
        end_trial(history, number, "finished", [{TOP1: top1, "cost/train_macs": macs}])
    write_final_results(sweep, space, history, held_out=5200)
    write_report([sweep.path], None)
    content = summary(sweep)
    assert (content["best"]["trial"], content["front"]) == ("0001", ["0000", "0001"])
    assert [each["metric"] for each in content["importances"]] == [TOP1, "cost/train_macs"]
    assert f"{TOP1} over cost/train_macs" in sweep.report.read_text()


def test_without_a_finished_trial_there_is_a_report_and_no_best(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, *SPACE)
    history = History(TuneOptions(trials=1))
    add_trial(history, 0, PLAIN)
    write_final_results(sweep, space, history, held_out=5200)
    write_report([sweep.path], None)
    assert summary(sweep)["best"] is None
    assert not sweep.best.exists()
    assert "No trial has finished." in sweep.report.read_text()


def test_texts_of_trials_are_escaped_in_the_report(sweep: SweepDir) -> None:
    page = sweep.report.read_text()
    assert page.count("<script>") == 1, "our own"
    assert "&lt;script&gt;alert(&#x27;1&#x27;)" in page


def test_writing_a_hundred_trials_takes_less_than_0_1_cpu_seconds(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, *SPACE)
    history = make_history(*((GOOD, number / 1000) for number in range(100)))
    write_results(sweep, space, history, held_out=5200)
    start = time.process_time()
    write_results(sweep, space, history, held_out=5200)
    assert time.process_time() - start < 0.1


@pytest.mark.usefixtures("processes")
def test_an_existing_file_is_not_overwritten_by_the_report(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, *SPACE)
    sweep.report.write_text("mine")
    write_final_results(sweep, space, make_history((PLAIN, 0.5)), held_out=0)
    assert "exists and was not written by fmfsd report" in write_sweep_report(sweep)
    assert (sweep.report.read_text(), sweep.has_report) == ("mine", False)
    sweep.report.unlink()
    assert (write_sweep_report(sweep), sweep.has_report) == ("", True)


@pytest.mark.usefixtures("processes")
def test_results_import_neither_torch_nor_ray_nor_optuna() -> None:
    code = "import sys, launcher.tune.results.write; print({'torch', 'ray', 'optuna'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
