"""`fmfsd diff`: differences between runs are listed first, equal values after them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmfsd.cli import app
from fmfsd.report.sections.provenance import describe_hardware
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from tests.helpers.runs import make_run, tiny_config

EPYC = {"cpu": "AMD EPYC 9454", "cores": 96, "gpus": ["NVIDIA H200"] * 8, "driver": "580.65"}


def finished_run(folder: Path, lr: float, top1: float, torch: str) -> RunDir:
    run = make_run(folder, tiny_config(folder.parent, f"optim.lr={lr}"))
    launch = {
        "versions": {"torch": torch, "numpy": "2.4"},
        "commit": "aaaa",
        "uncommitted": [" M fmfsd/training/loop.py"],
    }
    write_json(run.manifest, {"launches": [{**launch, "hardware": {"n1": EPYC, "n2": EPYC}}], "data": "cafe"})
    metrics = {"test": {"deepest_top1": top1}}
    write_json(run.outcome, {"state": "finished", "step": 16, "metrics": metrics})
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    first = finished_run(tmp_path / "first", 0.1, 0.5, "2.14.0")
    second = finished_run(tmp_path / "second", 0.2, 0.75, "2.15.0")
    return [str(first.path), str(second.path)]


def diff(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["diff", *arguments], env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


def test_the_json_output_has_different_and_equal_values(runs: list[str]) -> None:
    code, output, _ = diff(*runs, "--json")
    result = json.loads(output)
    assert code == 0
    assert result["different"] == {
        "config": {"optim.lr": [0.1, 0.2]},
        "software": {"torch": ["2.14.0", "2.15.0"]},
        "metrics": {"test deepest_top1": [0.5, 0.75]},
    }
    assert result["same"]["config"]["optim.momentum"] == 0.9
    assert result["same"]["software"] == {
        "numpy": "2.4",
        "commit": "aaaa",
        "uncommitted changes": [" M fmfsd/training/loop.py"],
    }
    assert result["same"]["data"] == {"SHA-256 of the index": "cafe"}


def test_the_text_output_lists_differences_first(runs: list[str]) -> None:
    code, output, _ = diff(*runs)
    assert code == 0
    learning_rate = next(line for line in output.splitlines() if "optim.lr" in line)
    assert ("0.1" in learning_rate, "0.2" in learning_rate) == (True, True)
    assert "75.00 %" in output
    assert output.index("optim.lr") < output.index("75.00 %") < output.index("optim.momentum")


def test_a_value_missing_in_one_run_is_a_difference(runs: list[str]) -> None:
    RunDir(Path(runs[1])).outcome.unlink()
    _, output, _ = diff(*runs, "--json")
    assert json.loads(output)["different"]["metrics"] == {"test deepest_top1": [0.5, None]}


def test_fewer_than_two_runs_and_other_folders_are_errors(runs: list[str], tmp_path: Path) -> None:
    code, _, errors = diff(runs[0])
    assert (code, "expected two or more" in errors) == (2, True)
    code, _, errors = diff(runs[0], str(tmp_path))
    assert (code, "not the folder of a run" in errors) == (3, True)


def test_hosts_of_one_kind_are_named_once() -> None:
    text = describe_hardware({"hardware": {"n1": EPYC, "n2": EPYC, "n3": {**EPYC, "gpus": [], "driver": ""}}})
    machine = "driver 580.65, AMD EPYC 9454 (96 cores)"
    assert text == f"2 hosts: 8 x NVIDIA H200, {machine}; AMD EPYC 9454 (96 cores)"
