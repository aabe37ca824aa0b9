"""What the launcher costs: to first step and to exit against bare torchrun, and how fast the words before a start come.

python -m tests.benchmarks.launch [--rounds N]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmfsd.config import dump_config
from fmfsd.data.prepare import prepare
from fmfsd.rundir import RunDir
from launcher.plan import KEEP_FREED_MEMORY
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


def by_torchrun(folder: Path, root: Path, number: int) -> tuple[float, float]:
    run = RunDir(folder / f"torchrun-{number}")
    run.create()
    run.config.write_text(dump_config(tiny_config(root, *CHANGES)))
    starter = [command("torchrun"), "--standalone", "--nproc-per-node", "1", "-m", "fmfsd", "train", str(run.path)]
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    return timed([*starter, "--device", "cpu"], folder, run, {**os.environ, **KEEP_FREED_MEMORY, **threads})


def by_launcher(folder: Path, root: Path, number: int) -> tuple[float, float]:
    run = RunDir(folder / f"launch-{number}")
    config = folder / "config.yaml"
    config.write_text(dump_config(tiny_config(root, *CHANGES)))
    return timed([command("fmfsd-launch"), str(config), "--run-dir", run.path.name], folder, run, os.environ)


def seconds(argv: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = range(parser.parse_args().rounds)
    quick: dict[str, list[str]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "fmfsd-launch --help": [command("fmfsd-launch"), "--help"],
        "fmfsd-launch smoke --dry-run": [command("fmfsd-launch"), "smoke", "--dry-run"],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(tiny_config(folder, *CHANGES).data, source=None, fetch=False, report=lambda what, done, total: None)
        pairs = [(by_torchrun(folder, folder, number), by_launcher(folder, folder, number)) for number in rounds]
        words = {name: [seconds(argv, folder) for _ in rounds] for name, argv in quick.items()}
    rows = []
    for what, place in (("first step", 0), ("exit", 1)):
        bare, ours = ([pair[way][place] for pair in pairs] for way in (0, 1))
        more = statistics.median(mine - theirs for mine, theirs in zip(ours, bare, strict=True))
        rows.append([f"to {what}", spread(bare, 2), spread(ours, 2), f"{more:+.2f}"])
    print_table(["seconds, one worker", "torchrun", "fmfsd-launch", "difference, median of pairs"], rows)
    print()
    least = statistics.median(words["python -c pass"])
    beyond = [[name, spread(values, 3), f"{statistics.median(values) - least:.3f}"] for name, values in words.items()]
    print_table(["command", "seconds", "beyond the interpreter's start"], beyond)


if __name__ == "__main__":
    main()
