"""What a checkpoint costs the training of FMFSD ResNet-18, batch 128, one process: pairs of stretches with and without.

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
from fmfsd.distributed.collectives import SoloComms
from fmfsd.training.loop import Loop
from tests.benchmarks.table import print_table, spread
from tests.helpers.runs import make_loop, make_run

WARM_UP_STEPS = 3
EVERY = 100


def loop_of(root: str, backbone: str) -> Loop:
    fixed = ("data.name=synthetic100", f"data.root={root}", f"model.backbone={backbone}")
    config = load_config("cifar100-resnet18", [*fixed, "train.log_every=1000000 steps"])
    prepare(config.data, source=None, fetch=False, report=lambda what, done, total: None)
    loop = make_loop(make_run(Path(root) / "run", config), SoloComms())
    loop.resume()
    for _ in range(WARM_UP_STEPS):
        loop._train_one_step()
    return loop


def seconds(loop: Loop, steps: int, *, saving: bool) -> float:
    """For so many steps, the first of which comes after the start of a save; with what that still does at the end."""
    start = time.perf_counter()
    if saving:
        loop._save()
    for _ in range(steps):
        loop._train_one_step()
        loop._look_after_saves()
    loop.checkpoints.finish()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--backbone", default="resnet18")
    asked = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as root:
        loop = loop_of(root, asked.backbone)
        pairs = [tuple(seconds(loop, asked.steps, saving=on) for on in (False, True)) for _ in range(asked.rounds)]
        loop.close()
    steps = [without / asked.steps for without, _ in pairs]
    costs = [with_save - without for without, with_save in pairs]
    share = 100 * statistics.median(costs) / (EVERY * statistics.median(steps))
    rows = [
        ["a step", spread(steps, 3)],
        [f"a save, in {asked.steps} steps: what these take longer", spread(costs, 3)],
        ["the save itself, from the copy to the rename", f"{loop.checkpoints.save_s:.3f}"],
        [f"share of the time at one save in {EVERY} steps, %", f"{share:.2f}"],
    ]
    print_table([f"FMFSD {asked.backbone}, batch 128", "seconds"], rows)


if __name__ == "__main__":
    main()
