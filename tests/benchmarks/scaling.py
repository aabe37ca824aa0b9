"""Scaling benchmark: several workers on this machine's cores, in one run and in independent runs.

python -m tests.benchmarks.scaling [--workers 1,2] [--batch N a worker] [--backbone resnet18] [--rounds N] [--steps N]

Each worker has its own core. The slowdown of independent workers is the machine's (memory, clock); what workers of one
run lose beyond that is communication.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fmfsd.config import RunConfig, load_config
from fmfsd.data.prepare import prepare
from fmfsd.distributed.collectives import Comms
from fmfsd.run.run_dir import RunDir
from launcher.plan.launch_plan import MALLOC_SETTINGS
from tests.benchmarks.table import print_table, spread
from tests.helpers.runs import make_loop, make_run
from tests.helpers.workers import run_workers

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Rate:
    """Speed of one worker; `waited` is the share of its time that the host waits in collectives."""

    images_per_s: float
    waited: float


def measure(comms: Comms, folder: Path, steps: int, core: int) -> Rate:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core + comms.rank]})
    with closing(make_loop(RunDir(folder), comms)) as loop:
        loop.resume()
        for _ in range(WARM_UP_STEPS):
            loop._train_one_step()
        waited_s, start = comms.activity.waited_s, time.perf_counter()
        for _ in range(steps):
            loop._train_one_step()
        took = time.perf_counter() - start
    images = steps * loop.config.train.batch / comms.size
    return Rate(images / took, (comms.activity.waited_s - waited_s) / took)


def config(options: argparse.Namespace, root: str, workers: int) -> RunConfig:
    fixed = ("data.name=synthetic100", f"data.root={root}", f"model.backbone={options.backbone}")
    batch = (f"train.batch={workers * options.batch}", "train.log_every=1000 steps")
    return load_config("cifar100-resnet18", [*fixed, *batch, *options.set])


def run_together(options: argparse.Namespace, root: str, workers: int) -> list[Rate]:
    run = make_run(Path(tempfile.mkdtemp(dir=root)), config(options, root, workers))
    return run_workers(measure, workers, run.path, options.steps, 0)


def run_independent(options: argparse.Namespace, root: str, workers: int) -> list[Rate]:
    runs = [make_run(Path(tempfile.mkdtemp(dir=root)), config(options, root, 1)) for _ in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(run_workers, measure, 1, run.path, options.steps, number) for number, run in enumerate(runs)
        ]
        return [rate for job in jobs for rate in job.result()]


def rows(options: argparse.Namespace, root: str) -> list[Sequence[str]]:
    measurements: dict[tuple[int, str], list[list[Rate]]] = {}
    for _ in range(options.rounds):
        for workers in options.workers:
            for name, way in (("independent", run_independent), ("together", run_together)):
                if workers > 1 or name == "together":
                    measurements.setdefault((workers, name), []).append(way(options, root, workers))
    totals = {
        case: [sum(rate.images_per_s for rate in each) for each in rounds] for case, rounds in measurements.items()
    }
    alone = totals[1, "together"]
    return [
        [
            f"{workers} {name}" if workers > 1 else "1",
            spread(totals[workers, name], 1),
            _ratio(totals[workers, name], [workers * one for one in alone]),
            _ratio(totals[workers, name], totals.get((workers, "independent"), [])),
            f"{100 * statistics.median(rate.waited for each in rounds for rate in each):.1f}",
        ]
        for (workers, name), rounds in measurements.items()
    ]


def _ratio(values: Sequence[float], others: Sequence[float]) -> str:
    pairs = list(zip(values, others, strict=False))
    return f"{statistics.median(value / other for value, other in pairs):.3f}" if pairs else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    os.environ.update(MALLOC_SETTINGS)  # as the launcher does; read at the start of the process that forks the workers
    with tempfile.TemporaryDirectory() as root:
        prepare(config(options, root, 1).data, source=None, fetch=False, report=lambda what, done, total: None)
        table = rows(options, root)
    header = ["images/s", "of ideal", "of independent runs", "waiting, %"]
    print_table([f"workers, FMFSD {options.backbone}, {options.batch} images each", *header], table)


if __name__ == "__main__":
    main()
