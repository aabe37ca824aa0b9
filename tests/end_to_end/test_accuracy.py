"""The accuracy benchmark as it is typed: real runs, killed on the way and gone on with, to one table."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fmfsd.system.atomic_files import read_json
from tests.benchmarks.accuracy_runs import Asked, Bench
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[2]
TINY = (
    *("data.shards=16", "train.batch=16", "train.max_steps=40", "train.precision=fp32", "train.channels_last=false"),
    *("train.log_every=10 steps", "checkpoint.every_steps=5", "train.evaluate_batch=64"),
)
OF_ALL = ("--backbone", "resnet8", "--dataset", "cifar10", "--seeds", "1", "--epochs", "9")


def words(root: Path, out: Path, methods: str, *more: str) -> list[str]:
    overrides = [word for change in TINY for word in ("--set", change)]
    places = ("--root", str(root), "--out", str(out), "--methods", methods)
    return [sys.executable, "-m", "tests.benchmarks.accuracy", *places, *OF_ALL, *overrides, *more]


def benchmark(root: Path, out: Path, methods: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(root, out, methods, *more), cwd=ROOT, capture_output=True, text=True)


def kill_after_a_checkpoint(root: Path, out: Path, run: Path) -> None:
    """The benchmark, which takes all that it has started with it."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words(root, out, "plain,fmfsd"), cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        try:
            wait_until(lambda: list(run.glob("checkpoints/step-*")), "a checkpoint of the first run")
            everything = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
    psutil.wait_procs(everything, timeout=60)


def rows(text: str) -> dict[str, list[str]]:
    """Of the table, by method."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: values for name, *values in cells[1:]}


def test_a_benchmark_that_is_killed_goes_on_past_a_run_that_fails(tiny_root: Path, tmp_path: Path) -> None:
    """What fails is byot, for which there is a file where its folder should be."""
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
    found = rows(answer.stdout)
    plains, mine = (
        read_json(out / f"cifar10-resnet8-{method}-0" / "outcome.json")["metrics"]["test"]["deepest_top1"]
        for method in ("plain", "fmfsd")
    )
    assert found["plain"][:5] == ["1 of 1", f"{100 * plains:.2f}", "-", "-", "-"]
    assert found["byot"][:2] == ["0 of 1", "not run"]
    assert (found["fmfsd"][0], found["fmfsd"][4]) == ("1 of 1", f"{100 * (mine - plains):+.2f}")
    assert "2 at a time" in found["fmfsd"][6]

    again = benchmark(tiny_root, out, "plain,fmfsd")
    assert (again.returncode, again.stderr, list(rows(again.stdout))) == (0, "", ["plain", "fmfsd"])
    other = benchmark(tiny_root, out, "plain", "--only-table", "--set", "train.max_steps=41")
    assert rows(other.stdout)["plain"][1] == "not run", "of a run of another length nothing is shown"


def test_when_the_time_is_up_a_run_is_stopped_with_a_checkpoint(tiny_root: Path, tmp_path: Path) -> None:
    asked = Asked("resnet8", "cifar10", ("plain", "byot"), 1, 9000, tiny_root, tmp_path, TINY[:2] + TINY[3:])
    first, second = asked.runs()
    bench = Bench([first, second], 1, lambda: bool(first.folder.newest_step()), tmp_path / "notes.json", "here")
    bench.work()
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
def test_what_is_wrong_is_said_before_any_run_is_started(more: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    answer = benchmark(tmp_path, tmp_path / "out", "plain", *more)
    assert (answer.returncode, expected in answer.stderr) == (2, True), answer.stderr
    assert os.listdir(tmp_path) == []
