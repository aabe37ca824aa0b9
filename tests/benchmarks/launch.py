"""Launch overhead: time to the first step and to the exit for each starter, compared with plain torchrun; and the time
of commands that start nothing.

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
from launcher.plan.launch_plan import MALLOC_SETTINGS
from tests.benchmarks.table import print_table, spread
from tests.helpers.processes import command
from tests.helpers.runs import tiny_config

CHANGES = ("data.name=synthetic10", "train.max_steps=3", "train.epochs=3")


def time_run(argv: Sequence[str], folder: Path, run: RunDir, env: Mapping[str, str]) -> tuple[float, float]:
    """Run the command; return the seconds to the first finished step and to the exit."""
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
    return time_run(
        [*starter, str(run.path), "--device", "cpu"], folder, run, {**os.environ, **MALLOC_SETTINGS, **threads}
    )


def by_launcher(starter: str, folder: Path, root: Path, number: int, workers: int) -> tuple[float, float]:
    run = RunDir(folder / f"{starter}-{number}")
    config = folder / "config.yaml"
    config.write_text(dump_config(tiny_config(root, *CHANGES)))
    options = ["--gpus", str(workers), "--starter", starter, "--run-dir", run.path.name]
    return time_run([command("fmfsd-launch"), str(config), *options], folder, run, os.environ)


VARIANTS: Mapping[str, Callable[[Path, Path, int, int], tuple[float, float]]] = {
    "plain torchrun": by_torchrun,
    **{f"--starter {starter}": partial(by_launcher, starter) for starter in ("torchrun", "direct", "deepspeed")},
}


def seconds(argv: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def compare_starters(folder: Path, rounds: int, workers: int) -> None:
    """Print the seconds of each variant, and the median of its pairwise differences to the first."""
    measurements: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        for name, variant in VARIANTS.items():
            measurements[name].append(variant(folder, folder, number, workers))
    bare, rows = measurements[next(iter(VARIANTS))], []
    for name, times in measurements.items():
        cells = [name]
        for index in (0, 1):
            more = median(mine[index] - theirs[index] for mine, theirs in zip(times, bare, strict=True))
            cells += [spread([time[index] for time in times], 2), f"{more:+.2f}"]
        rows.append(cells)
    print_table([f"seconds, workers: {workers}", "to first step", "median more", "to exit", "median more"], rows)


def time_commands(rounds: int) -> None:
    """Print the seconds of commands that start no worker."""
    commands: dict[str, list[str]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "fmfsd-launch --help": [command("fmfsd-launch"), "--help"],
        "fmfsd-launch smoke --dry-run": [command("fmfsd-launch"), "smoke", "--dry-run"],
    }
    with tempfile.TemporaryDirectory() as folder:
        measurements = {name: [seconds(argv, Path(folder)) for _ in range(rounds)] for name, argv in commands.items()}
    least = median(measurements["python -c pass"])
    rows = [[name, spread(values, 3), f"{median(values) - least:.3f}"] for name, values in measurements.items()]
    print_table(["command", "seconds", "more than the interpreter's start"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(tiny_config(folder, *CHANGES).data, source=None, fetch=False, report=lambda what, done, total: None)
        compare_starters(folder, options.rounds, options.workers)
    print()
    time_commands(options.rounds)


if __name__ == "__main__":
    main()
