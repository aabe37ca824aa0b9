"""The accuracy benchmark as it is typed: real runs, killed on the way and gone on with, to one table."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fmfsd.files import read_json
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[2]
TINY = (
    *("data.shards=16", "train.batch=16", "train.max_steps=40", "train.precision=fp32", "train.channels_last=false"),
    *("train.log_every=10 steps", "checkpoint.every_steps=5", "train.evaluate_batch=64"),
)


def words(root: Path, out: Path, *more: str, settings: Sequence[str] = TINY) -> list[str]:
    of_all = ("--root", str(root), "--out", str(out), "--backbone", "resnet8", "--dataset", "cifar10", "--seeds", "1")
    overrides = [word for change in settings for word in ("--set", change)]
    return [sys.executable, "-m", "tests.benchmarks.accuracy", *of_all, "--methods", "plain,fmfsd", *overrides, *more]


def benchmark(root: Path, out: Path, *more: str, settings: Sequence[str] = TINY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(root, out, *more, settings=settings), cwd=ROOT, capture_output=True, text=True)


@contextmanager
def started(root: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words(root, out, "--epochs", "9"), cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def rows(text: str) -> dict[str, list[str]]:
    """Of the table, by method."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: values for name, *values in cells[1:]}


def test_a_benchmark_that_is_killed_goes_on_and_compares_its_methods(tiny_root: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "out" / "cifar10-resnet8-plain-0"
    with started(tiny_root, out) as process:
        wait_until(lambda: list(plain.glob("checkpoints/step-*")), "a checkpoint of the first run")
        everything = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        psutil.wait_procs(everything, timeout=60)
    assert rows(benchmark(tiny_root, out, "--epochs", "9", "--only-table").stdout)["plain"][:2] == ["0 of 1", "not run"]
    answer = benchmark(tiny_root, out, "--epochs", "9", "--packed", "2")
    assert answer.returncode == 0, answer.stderr
    found = rows(answer.stdout)
    mine, plains = (read_json(out / f"cifar10-resnet8-{method}-0" / "outcome.json") for method in ("fmfsd", "plain"))
    difference = 100 * (mine["metrics"]["test"]["deepest_top1"] - plains["metrics"]["test"]["deepest_top1"])
    assert found["plain"][:5] == ["1 of 1", f"{100 * plains['metrics']['test']['deepest_top1']:.2f}", "-", "-", "-"]
    assert found["fmfsd"][4] == f"{difference:+.2f}"
    assert "2 at a time" in found["fmfsd"][6]
    assert "going on after step" in (out / "cifar10-resnet8-plain-0.log").read_text()
    again = benchmark(tiny_root, out, "--epochs", "9")
    assert (again.returncode, again.stderr, rows(again.stdout)) == (0, "", found)


def test_a_run_that_fails_is_told_and_the_others_go_on(tiny_root: Path, tmp_path: Path) -> None:
    """A file where a run's folder should be."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "cifar10-resnet8-plain-0").touch()
    answer = benchmark(tiny_root, out, "--epochs", "9", settings=(*TINY, "train.max_steps=2"))
    assert answer.returncode == 1
    assert f"cifar10-resnet8-plain-0: failed with exit code 2: {out}/cifar10-resnet8-plain-0" in answer.stderr
    found = rows(answer.stdout)
    assert (found["plain"][:2], found["fmfsd"][0]) == (["0 of 1", "not run"], "1 of 1")
    other = benchmark(tiny_root, out, "--epochs", "9", "--only-table")
    assert rows(other.stdout)["fmfsd"][:2] == ["0 of 1", "not run"], "of a run of other settings nothing is shown"


def test_when_the_time_is_up_runs_are_stopped_and_left_for_another_time(tiny_root: Path, tmp_path: Path) -> None:
    answer = benchmark(tiny_root, tmp_path / "out", "--budget-s", "9", settings=(*TINY, "train.max_steps=100000"))
    assert answer.returncode == 75
    assert "plain-0: stopped, to go on with the same command" in answer.stderr
    assert "fmfsd-0" not in answer.stderr
    assert [values[1] for values in rows(answer.stdout).values()] == ["not run"] * 2


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
    answer = benchmark(tmp_path, tmp_path / "out", *more)
    assert (answer.returncode, expected in answer.stderr) == (2, True), answer.stderr
    assert os.listdir(tmp_path) == []
