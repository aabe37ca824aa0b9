"""Soak test: random faults in real launches, N in all; every run must finish with the same result.

python -m tests.benchmarks.soak [--faults N] [--seed N]

Each run is launched again, with the same command, until it is finished; its metrics and weights must then be bit for
bit those of an undisturbed run. Any other exit code, or a leftover process, is a failure of the soak test.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fmfsd.config import DataConfig
from fmfsd.data.prepare import prepare
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import list_positions
from tests.benchmarks.table import print_table, spread
from tests.helpers.official import write_official
from tests.helpers.processes import LaunchProcess, start_launch, wait_until
from tests.helpers.runs import TINY, newest_weights, read_records

STEPS, EVERY = 400, 40
SETTINGS = (
    *("data.shards=16", "train.batch=16", f"train.max_steps={STEPS}", "train.evaluate_every=100 steps"),
    *("train.epochs=100", "train.log_every=10 steps", f"checkpoint.every_steps={EVERY}"),
)
NODES = ("--nodes", "2", "--gpus", "1", "--hang-timeout", "10", "--max-restarts", "100")
RELAUNCHED_CODES = {0, 75, -signal.SIGKILL}


def kill_worker(run: LaunchProcess, rng: random.Random) -> None:
    run.worker(rng.randrange(2)).kill()


def kill_agent(run: LaunchProcess, rng: random.Random) -> None:
    rng.choice(run.agents()).kill()


def kill_starter(run: LaunchProcess, rng: random.Random) -> None:
    run.starter(rng.randrange(2)).kill()


def kill_launcher(run: LaunchProcess, rng: random.Random) -> None:
    run.signal(signal.SIGKILL)


def suspend_worker(run: LaunchProcess, rng: random.Random) -> None:
    run.worker(rng.randrange(2)).suspend()


def stop_launcher(run: LaunchProcess, rng: random.Random) -> None:
    run.signal(rng.choice([signal.SIGTERM, signal.SIGINT]))


def stop_worker(run: LaunchProcess, rng: random.Random) -> None:
    run.worker(rng.randrange(2)).terminate()


def damage_newest_checkpoint(run: LaunchProcess, rng: random.Random) -> None:
    """Damage the newest checkpoint, and kill a worker, so that the next attempt reads it."""
    newest = run.run.checkpoints / list_positions(run.run.checkpoints)[0].folder_name
    file = rng.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content[: rng.choice([len(content), len(content) // 2])])
    kill_worker(run, rng)


FAULTS: tuple[Callable[[LaunchProcess, random.Random], None], ...] = (
    *(kill_worker, kill_agent, kill_starter, kill_launcher),
    *(suspend_worker, stop_launcher, stop_worker, damage_newest_checkpoint),
)


@dataclass
class Soak:
    """The soak test: its settings, and the counts and problems so far."""

    folder: Path
    arguments: tuple[str, ...]
    rng: random.Random
    num_faults: int
    done: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    runs: int = 0
    problems: list[str] = field(default_factory=list)

    def run_all(self) -> None:
        undisturbed = self.run_to_end("undisturbed", disturbed=False)
        while self.done.total() < self.num_faults:
            self.runs += 1
            run = self.run_to_end(f"run-{self.runs}", disturbed=True)
            if read_records(run) != read_records(undisturbed) or newest_weights(run) != newest_weights(undisturbed):
                self.problems.append(f"{run.path.name} has another result")
            print(f"{run.path.name}: {self.done.total()} faults, {len(self.problems)} problems", file=sys.stderr)

    def run_to_end(self, name: str, *, disturbed: bool) -> RunDir:
        """Launch the run again and again until it is finished."""
        while True:
            with start_launch(self.folder, name, self.arguments) as run:
                everything = self.disturb(run) if disturbed else []
                code, output = run.wait_for_end()
            self.require_nothing_left(everything)
            if code == 0:
                return run.run
            if code not in RELAUNCHED_CODES:
                self.problems.append(f"{name} ended with {code}: {output[-600:]}")
                if code == 1 and not json.loads(run.run.outcome.read_text())["resumable"]:
                    return run.run

    def disturb(self, run: LaunchProcess) -> list[psutil.Process]:
        """Cause one fault after another, each after one more checkpoint; return the processes seen last."""
        everything: list[psutil.Process] = []
        while run.process.poll() is None and self.done.total() < self.num_faults:
            at = (run.run.newest_step() or 0) + self.rng.randint(EVERY + EVERY // 4, 2 * EVERY)
            start = time.monotonic()
            while run.process.poll() is None and (run.progress(0).get("step", 0) < at or not self.is_training(run)):
                time.sleep(0.02)
            self.recovery_s.append(time.monotonic() - start)
            everything = self.cause(self.rng.choice(FAULTS), run) or everything
        return everything

    def is_training(self, run: LaunchProcess) -> bool:
        newest = run.run.last_attempt()
        return all(run.progress(rank).get("attempt") == newest for rank in range(2))

    def cause(self, fault: Callable[[LaunchProcess, random.Random], None], run: LaunchProcess) -> list[psutil.Process]:
        """Cause one fault and return the run's processes. A process that has exited in the meantime does not count as a
        fault."""
        try:
            everything = run.descendants()
            fault(run, self.rng)
            self.done[fault.__name__] += 1
        except (psutil.Error, IndexError, KeyError, ValueError, OSError):
            return []
        return everything

    def require_nothing_left(self, everything: list[psutil.Process]) -> None:
        def none_is_left() -> bool:
            return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in everything)

        try:
            wait_until(none_is_left, "the end of every process", deadline_s=15)
        except AssertionError as error:
            self.problems.append(str(error))


def prepare_data(root: Path) -> tuple[str, ...]:
    source = write_official(root / "source", "cifar10", train=256, test=64)
    data = DataConfig(name="cifar10", root=str(root), shards=16)
    prepare(data, source=source, fetch=False, report=lambda what, done, total: None)
    changes = (*TINY, f"data.root={root}", *SETTINGS)
    return ("cifar100-resnet18", *NODES, *(part for change in changes for part in ("--set", change)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), prepare_data(Path(folder)), random.Random(options.seed), options.faults)
        soak.run_all()
    rows = [[name.replace("_", " "), count] for name, count in sorted(soak.done.items())]
    rows += [["finished runs", soak.runs], ["problems", len(soak.problems)]]
    rows += [
        ["minutes", f"{(time.monotonic() - start) / 60:.0f}"],
        ["seconds between faults", spread(soak.recovery_s, 1)],
    ]
    rows += [["largest process, MiB", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]]
    print_table(["fault", "times"], rows)
    for problem in soak.problems:
        print(problem)
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
