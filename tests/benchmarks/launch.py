"""What the launcher costs: to the first step and to the exit, by each starter, next to torchrun without us; and how
fast commands are that start nothing.

python -m tests.benchmarks.launch [--rounds N] [--workers N]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from fmfsd.config import dump_config
from fmfsd.data.prepare import prepare
from fmfsd.run.run_dir import RunDir
from launcher.plan.plan import KEEP_FREED_MEMORY
from tests.benchmarks.table import print_table, spread
from tests.helpers.processes import command
from tests.helpers.runs import tiny_config

CHANGES = ("data.name=synthetic10", "train.max_steps=3", "train.epochs=3")


def timed(argv: Sequence[str], folder: Path, run: RunDir, env: Mapping[str, str]) -> tuple[float, float]:
    """Seconds to the first finished step and to the exit."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = 0.0
    while process.poll() is None:
        if not first and run.metrics.exists() and run.metrics.stat().st_size:
            first = time.perf_counter() - start
        time.sleep(0.002)
    assert process.returncode == 0, argv
    return first, time.perf_counter() - start


def by_torchrun(folder: Path, root: Path, number: int, workers: int) -> tuple[float, float]:
    run = RunDir(folder / f"bare-{number}")
    run.create()
    run.config.write_text(dump_config(tiny_config(root, *CHANGES)))
    starter = [command("torchrun"), "--standalone", "--nproc-per-node", str(workers), "-m", "fmfsd", "train"]
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // workers))}
    return timed(
        [*starter, str(run.path), "--device", "cpu"], folder, run, {**os.environ, **KEEP_FREED_MEMORY, **threads}
    )


def by_launcher(starter: str, folder: Path, root: Path, number: int, workers: int) -> tuple[float, float]:
    run = RunDir(folder / f"{starter}-{number}")
    config = folder / "config.yaml"
    config.write_text(dump_config(tiny_config(root, *CHANGES)))
    options = ["--gpus", str(workers), "--starter", starter, "--run-dir", run.path.name]
    return timed([command("fmfsd-launch"), str(config), *options], folder, run, os.environ)


WAYS: Mapping[str, Callable[[Path, Path, int, int], tuple[float, float]]] = {
    "torchrun, without us": by_torchrun,
    **{f"--starter {starter}": partial(by_launcher, starter) for starter in ("torchrun", "direct", "deepspeed")},
}


def seconds(argv: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def compare_starters(folder: Path, rounds: int, workers: int) -> None:
    """Print seconds of each way, and the median of its differences to the first one, pair by pair."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for number in range(rounds):
        for name, way in WAYS.items():
            found[name].append(way(folder, folder, number, workers))
    bare, rows = found[next(iter(WAYS))], []
    for name, times in found.items():
        cells = [name]
        for place in (0, 1):
            more = median(mine[place] - theirs[place] for mine, theirs in zip(times, bare, strict=True))
            cells += [spread([time[place] for time in times], 2), f"{more:+.2f}"]
        rows.append(cells)
    print_table([f"seconds, workers: {workers}", "to first step", "median more", "to exit", "median more"], rows)


def time_commands(rounds: int) -> None:
    """Print seconds of commands that start nothing."""
    quick: dict[str, list[str]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "fmfsd-launch --help": [command("fmfsd-launch"), "--help"],
        "fmfsd-launch smoke --dry-run": [command("fmfsd-launch"), "smoke", "--dry-run"],
    }
    with tempfile.TemporaryDirectory() as folder:
        found = {name: [seconds(argv, Path(folder)) for _ in range(rounds)] for name, argv in quick.items()}
    least = median(found["python -c pass"])
    rows = [[name, spread(values, 3), f"{median(values) - least:.3f}"] for name, values in found.items()]
    print_table(["command", "seconds", "beyond the interpreter's start"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(tiny_config(folder, *CHANGES).data, source=None, fetch=False, report=lambda what, done, total: None)
        compare_starters(folder, asked.rounds, asked.workers)
    print()
    time_commands(asked.rounds)


if __name__ == "__main__":
    main()
