"""The accuracy benchmark from the command line: real runs, killed and resumed, and their table."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fmfsd.system.atomic_files import read_json
from tests.benchmarks.accuracy_runs import Bench, Comparison
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[2]
TINY = (
    *("data.shards=16", "train.batch=16", "train.max_steps=40", "train.precision=fp32", "train.channels_last=false"),
    *("train.log_every=10 steps", "checkpoint.every_steps=5", "train.evaluate_batch=64"),
)
COMMON_OPTIONS = ("--backbone", "resnet8", "--dataset", "cifar10", "--seeds", "1", "--epochs", "9")


def benchmark_argv(root: Path, out: Path, methods: str, *more: str) -> list[str]:
    overrides = [part for change in TINY for part in ("--set", change)]
    places = ("--root", str(root), "--out", str(out), "--methods", methods)
    return [sys.executable, "-m", "tests.benchmarks.accuracy", *places, *COMMON_OPTIONS, *overrides, *more]


def benchmark(root: Path, out: Path, methods: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(benchmark_argv(root, out, methods, *more), cwd=ROOT, capture_output=True, text=True)


def kill_after_a_checkpoint(root: Path, out: Path, run: Path) -> None:
    """Kill the benchmark after its first checkpoint; its child processes end with it."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(benchmark_argv(root, out, "plain,fmfsd"), cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        try:
            wait_until(lambda: list(run.glob("checkpoints/step-*")), "a checkpoint of the first run")
            everything = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
    psutil.wait_procs(everything, timeout=60)


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of the table by method."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: values for name, *values in cells[1:]}


def test_a_killed_benchmark_resumes_and_continues_past_a_failed_run(tiny_root: Path, tmp_path: Path) -> None:
    """The run of byot fails, as a file is in the place of its folder."""
    out, plain = tmp_path / "out", tmp_path / "out" / "cifar10-resnet8-plain-0"
    kill_after_a_checkpoint(tiny_root, out, plain)
    (out / "cifar10-resnet8-byot-0").touch()
    before = benchmark(tiny_root, out, "plain,byot", "--budget-s", "0")
    assert (before.returncode, before.stderr) == (75, ""), "without time nothing is started"
    assert rows(before.stdout)["plain"][:2] == ["0 of 1", "not run"]

    answer = benchmark(tiny_root, out, "plain,byot,fmfsd", "--packed", "2")
    assert answer.returncode == 1
    assert f"cifar10-resnet8-byot-0: failed with exit code 2: {out}/cifar10-resnet8-byot-0" in answer.stderr
    assert "resuming after step" in (out / "cifar10-resnet8-plain-0.log").read_text()
    table = rows(answer.stdout)
    plains, mine = (
        read_json(out / f"cifar10-resnet8-{method}-0" / "outcome.json")["metrics"]["test"]["deepest_top1"]
        for method in ("plain", "fmfsd")
    )
    assert table["plain"][:5] == ["1 of 1", f"{100 * plains:.2f}", "-", "-", "-"]
    assert table["byot"][:2] == ["0 of 1", "not run"]
    assert (table["fmfsd"][0], table["fmfsd"][4]) == ("1 of 1", f"{100 * (mine - plains):+.2f}")
    assert "2 at a time" in table["fmfsd"][6]

    again = benchmark(tiny_root, out, "plain,fmfsd")
    assert (again.returncode, again.stderr, list(rows(again.stdout))) == (0, "", ["plain", "fmfsd"])
    other = benchmark(tiny_root, out, "plain", "--only-table", "--set", "train.max_steps=41")
    assert rows(other.stdout)["plain"][1] == "not run", "a run of another length is not shown"


def test_a_run_is_stopped_with_a_checkpoint_when_the_time_budget_is_used_up(tiny_root: Path, tmp_path: Path) -> None:
    options = Comparison("resnet8", "cifar10", ("plain", "byot"), 1, 9000, tiny_root, tmp_path, TINY[:2] + TINY[3:])
    first, second = options.runs()
    bench = Bench([first, second], 1, lambda: bool(first.folder.newest_step()), tmp_path / "notes.json", "here")
    bench.run_all()
    assert (first.outcome()["state"], first.is_finished, bench.failed) == ("stopped", False, {})
    assert (bench.waiting, second.folder.path.exists()) == ([second], False)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--methods", "plain,magic"), "no method is called 'magic'; there are fmfsd"),
        (("--seeds", "0"), "expected a positive number, found '0'"),
        (("--set", "train.batch=100"), "100 is not divisible by data.shards 16"),
        (("--backbone", "resnet81"), "did you mean resnet8"),
    ],
)
def test_wrong_options_are_reported_before_any_run_starts(more: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    answer = benchmark(tmp_path, tmp_path / "out", "plain", *more)
    assert (answer.returncode, expected in answer.stderr) == (2, True), answer.stderr
    assert os.listdir(tmp_path) == []
