"""Cost of checkpoints: training time of FMFSD ResNet-18, batch 128, one process, in pairs with and without a save.

python -m tests.benchmarks.checkpoint [--rounds N] [--steps N] [--backbone resnet18]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fmfsd.config import load_config
from fmfsd.data.prepare import prepare
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.training.loop import Loop
from tests.benchmarks.table import print_table, spread
from tests.helpers.runs import make_loop, make_run

WARM_UP_STEPS = 3
SAVE_EVERY = 100


def warm_loop(root: str, backbone: str) -> Loop:
    fixed = ("data.name=synthetic100", f"data.root={root}", f"model.backbone={backbone}")
    config = load_config("cifar100-resnet18", [*fixed, "train.log_every=1000000 steps"])
    prepare(config.data, source=None, fetch=False, report=lambda what, done, total: None)
    loop = make_loop(make_run(Path(root) / "run", config), SingleWorkerComms())
    loop.resume()
    for _ in range(WARM_UP_STEPS):
        loop._train_one_step()
    return loop


def seconds(loop: Loop, steps: int, *, saving: bool) -> float:
    """Return the seconds of `steps` steps; with `saving` a save starts before the first and is waited for after the
    last."""
    start = time.perf_counter()
    if saving:
        loop._save()
    for _ in range(steps):
        loop._train_one_step()
        loop._check_saves()
    loop.checkpoints.finish()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--backbone", default="resnet18")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as root:
        loop = warm_loop(root, options.backbone)
        pairs = [tuple(seconds(loop, options.steps, saving=on) for on in (False, True)) for _ in range(options.rounds)]
        loop.close()
    steps = [without / options.steps for without, _ in pairs]
    costs = [with_save - without for without, with_save in pairs]
    share = 100 * statistics.median(costs) / (SAVE_EVERY * statistics.median(steps))
    rows = [
        ["one step", spread(steps, 3)],
        [f"one save during {options.steps} steps: additional time", spread(costs, 3)],
        ["the save itself, from copy to rename", f"{loop.checkpoints.save_s:.3f}"],
        [f"share of the time with one save every {SAVE_EVERY} steps, %", f"{share:.2f}"],
    ]
    print_table([f"FMFSD {options.backbone}, batch 128", "seconds"], rows)


if __name__ == "__main__":
    main()
