"""`fmfsd-launch verify` as a user runs it: real runs with several numbers of workers, and its table."""

import json
import signal
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import LaunchProcess, run_command, start_launch


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    return _arguments(tiny_root)


def _arguments(root: Path, *changes: str) -> tuple[str, ...]:
    changes = ("data.shards=4", "train.batch=4", "train.precision=fp64", *changes)
    return tiny_arguments(root, *changes, workers=(1, 2))


def test_an_invariant_config_has_the_same_result_on_one_and_two_nodes(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    sizes = ("--workers", "1,2", "--steps", "2", "--nodes", "2", "--run-dir", "found", "--json")
    done = run_command("fmfsd-launch", "verify", *arguments, *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    (two,) = content["against_the_first"]
    assert (two["workers"], two["nodes"], two["samples"], two["good"]) == (2, 2, 0, True)
    assert 0 < max(two[name] for name in ("losses", "gradients", "weights")) < content["promise"]["losses"] == 1e-9
    assert "2 steps by 1, 2 workers on cpu (no GPU is visible), fp64, global batch 4" in done.stderr
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"w1", "w2", "comparison.json"}
    (compared,) = json.loads((tmp_path / "found" / "comparison.json").read_text())["comparisons"]
    assert (len(compared["losses"]), len(compared["gradients"])) == (2, 2)
    assert not (RunDir(tmp_path / "found" / "w2").path / "trace" / "step-00000001-rank-2.json").exists()


def test_a_config_whose_results_depend_on_the_workers_is_reported(tiny_root: Path, tmp_path: Path) -> None:
    arguments = _arguments(tiny_root, "model.sync_bn=false")
    sizes = ("--workers", "2,1", "--steps", "2")
    done = run_command("fmfsd-launch", "verify", *arguments, *sizes, cwd=tmp_path, env={"COLUMNS": "120"})
    assert done.returncode == 1
    assert "model.sync_bn is off: results depend on the number of workers" in done.stdout
    assert "NO: losses, gradients, weights" in done.stdout
    assert "1 worker: gradients differ by" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("cifar100-resnet18-verify-")


def test_an_interrupted_comparison_ends(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The second run is not started."""
    sizes = ("--workers", "1,2", "--steps", "100000")
    with start_launch(tmp_path, "found", ("verify", *arguments, *sizes)) as verification:
        LaunchProcess(verification.process, RunDir(tmp_path / "found" / "w1")).wait_for_step(1)
        verification.signal(signal.SIGINT)
        code, output = verification.wait_for_end()
    assert code == 75
    assert output.endswith("the comparison was ended\n")
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["w1"]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (
            ("--workers", "1,3,128", "--set", "train.log_every=no"),
            ("train.log_every",),
        ),
        (
            ("--workers", "1,3,128", "--run-dir", "taken"),
            ("3 workers do not divide data.shards 64; nearest: 2 or 4", "128 workers do not", "taken: exists"),
        ),
        (
            ("--workers", "1,2", "--device", "cuda"),
            ("--workers 1: needs as many GPUs, 0 are visible", "--workers 2:", "--device cpu"),
        ),
        (("--workers", "2", "--set", "foo=1"), ("'2': expected two or more", "--set foo=1")),
        (("--workers", "1,2,2"), ("expected two or more different numbers of workers, as in 1,2,4",)),
    ],
)
def test_wrong_options_of_a_comparison_are_rejected_before_the_start(
    wrong: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").touch()
    answer = run_command("fmfsd-launch", "verify", "smoke", *wrong, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    for part in expected:
        assert part in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_dry_run_shows_the_plan_of_every_run(tmp_path: Path) -> None:
    options = ("verify", "smoke", "--workers", "1,4", "--nodes", "2", "--run-dir", "found", "--dry-run", "--json")
    runs = json.loads(run_command("fmfsd-launch", *options, cwd=tmp_path).stdout)["runs"]
    assert [(run["workers"], len(run["nodes"]), run["run_dir"]) for run in runs] == [
        (1, 1, f"{tmp_path}/found/w1"),
        (4, 2, f"{tmp_path}/found/w4"),
    ]
    assert all(node["env"]["FMFSD_TRACE"] == "1" for run in runs for node in run["nodes"])
    assert list(tmp_path.iterdir()) == []
