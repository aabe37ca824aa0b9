"""Random faults to real launches until so many were done: every run must come to an end, and to the same end.

python -m tests.benchmarks.soak [--faults N] [--seed N]

Each run is launched again, with the same command, until it says finished; its metrics and weights must then be, bit for
bit, those of a run that nobody disturbed. Any other end, or a process that is left, is a failure of the soak.
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
from fmfsd.run.train_position import positions_in
from tests.benchmarks.table import print_table, spread
from tests.helpers.official import write_official
from tests.helpers.processes import Launched, launched, wait_until
from tests.helpers.runs import TINY, newest_weights, records

STEPS, EVERY = 400, 40
SETTINGS = (
    *("data.shards=16", "train.batch=16", f"train.max_steps={STEPS}", "train.evaluate_every=100 steps"),
    *("train.epochs=100", "train.log_every=10 steps", f"checkpoint.every_steps={EVERY}"),
)
NODES = ("--nodes", "2", "--gpus", "1", "--hang-timeout", "10", "--max-restarts", "100")
GOES_ON = {0, 75, -signal.SIGKILL}


def kill_a_worker(run: Launched, chance: random.Random) -> None:
    run.worker(chance.randrange(2)).kill()


def kill_an_agent(run: Launched, chance: random.Random) -> None:
    chance.choice(run.agents()).kill()


def kill_a_starter(run: Launched, chance: random.Random) -> None:
    run.starter(chance.randrange(2)).kill()


def kill_the_launcher(run: Launched, chance: random.Random) -> None:
    run.signal(signal.SIGKILL)


def suspend_a_worker(run: Launched, chance: random.Random) -> None:
    run.worker(chance.randrange(2)).suspend()


def stop_the_launcher(run: Launched, chance: random.Random) -> None:
    run.signal(chance.choice([signal.SIGTERM, signal.SIGINT]))


def stop_a_worker(run: Launched, chance: random.Random) -> None:
    run.worker(chance.randrange(2)).terminate()


def damage_the_newest_checkpoint(run: Launched, chance: random.Random) -> None:
    """And kill a worker, so that somebody reads it."""
    newest = run.run.checkpoints / positions_in(run.run.checkpoints)[0].folder_name
    file = chance.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content[: chance.choice([len(content), len(content) // 2])])
    kill_a_worker(run, chance)


FAULTS: tuple[Callable[[Launched, random.Random], None], ...] = (
    *(kill_a_worker, kill_an_agent, kill_a_starter, kill_the_launcher),
    *(suspend_a_worker, stop_the_launcher, stop_a_worker, damage_the_newest_checkpoint),
)


@dataclass
class Soak:
    """What was done so far."""

    folder: Path
    arguments: tuple[str, ...]
    chance: random.Random
    wanted: int
    done: Counter[str] = field(default_factory=Counter)
    back_s: list[float] = field(default_factory=list)
    runs: int = 0
    problems: list[str] = field(default_factory=list)

    def go(self) -> None:
        undisturbed = self.run_to_end("undisturbed", disturbed=False)
        while self.done.total() < self.wanted:
            self.runs += 1
            run = self.run_to_end(f"run-{self.runs}", disturbed=True)
            if records(run) != records(undisturbed) or newest_weights(run) != newest_weights(undisturbed):
                self.problems.append(f"{run.path.name} came to another result")
            print(f"{run.path.name}: {self.done.total()} faults, {len(self.problems)} problems", file=sys.stderr)

    def run_to_end(self, name: str, *, disturbed: bool) -> RunDir:
        """Launched again and again until it says finished."""
        while True:
            with launched(self.folder, name, self.arguments) as run:
                everything = self.disturb(run) if disturbed else []
                code, output = run.end()
            self.require_nothing_left(everything)
            if code == 0:
                return run.run
            if code not in GOES_ON:
                self.problems.append(f"{name} ended with {code}: {output[-600:]}")
                if code == 1 and not json.loads(run.run.outcome.read_text())["resumable"]:
                    return run.run

    def disturb(self, run: Launched) -> list[psutil.Process]:
        """One fault after another, each once the run has made a checkpoint more; the processes of the last look."""
        everything: list[psutil.Process] = []
        while run.process.poll() is None and self.done.total() < self.wanted:
            at = (run.run.newest_step() or 0) + self.chance.randint(EVERY + EVERY // 4, 2 * EVERY)
            start = time.monotonic()
            while run.process.poll() is None and (run.progress(0).get("step", 0) < at or not self.is_at_work(run)):
                time.sleep(0.02)
            self.back_s.append(time.monotonic() - start)
            everything = self.do(self.chance.choice(FAULTS), run) or everything
        return everything

    def is_at_work(self, run: Launched) -> bool:
        newest = run.run.last_attempt()
        return all(run.progress(rank).get("attempt") == newest for rank in range(2))

    def do(self, fault: Callable[[Launched, random.Random], None], run: Launched) -> list[psutil.Process]:
        """A process that has ended meanwhile can't be harmed: that is no fault done."""
        try:
            everything = run.everything()
            fault(run, self.chance)
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


def prepared(root: Path) -> tuple[str, ...]:
    source = write_official(root / "source", "cifar10", train=256, test=64)
    data = DataConfig(name="cifar10", root=str(root), shards=16)
    prepare(data, source=source, fetch=False, report=lambda what, done, total: None)
    changes = (*TINY, f"data.root={root}", *SETTINGS)
    return ("cifar100-resnet18", *NODES, *(part for change in changes for part in ("--set", change)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), prepared(Path(folder)), random.Random(asked.seed), asked.faults)
        soak.go()
    rows = [[name.replace("_", " "), count] for name, count in sorted(soak.done.items())]
    rows += [["runs, each to its end", soak.runs], ["problems", len(soak.problems)]]
    rows += [["minutes", f"{(time.monotonic() - start) / 60:.0f}"], ["seconds between faults", spread(soak.back_s, 1)]]
    rows += [["largest process, MiB", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]]
    print_table(["fault", "times"], rows)
    for problem in soak.problems:
        print(problem)
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
