"""Training steps of FMFSD ResNet-18, batch 128, one process: ours against a plain loop with the same network and loss.

python -m tests.benchmarks.train [--rounds N] [--steps N] [--backbone resnet18]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fmfsd.comms import SoloComms
from fmfsd.config import TrainConfig, load_config
from fmfsd.data.index import read_index, set_folder
from fmfsd.data.prepare import prepare
from launcher.plan import KEEP_FREED_MEMORY
from tests.benchmarks.peer import PlainLoop
from tests.benchmarks.table import print_table, spread
from tests.helpers.runs import make_loop, make_run

WARM_UP_STEPS = 2
FP32 = ("train.precision=fp32", "train.channels_last=false")
WAYS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "plain loop: fp32, NCHW, DataLoader of 2": ("plain", FP32, {}),
    "ours, as plain: fp32, NCHW": ("ours", FP32, KEEP_FREED_MEMORY),
    "ours, as plain, without the memory settings": ("ours", FP32, {}),
    "ours, the preset: bf16, channels_last": ("ours", (), KEEP_FREED_MEMORY),
}


def config(root: str, backbone: str, changes: tuple[str, ...]) -> TrainConfig:
    fixed = ("data.name=synthetic100", f"data.root={root}", f"model.backbone={backbone}", "checkpoint.every_epochs=200")
    return load_config("cifar100-resnet18", [*fixed, "train.log_every=1000 steps", *changes])


def step_of(kind: str, settings: TrainConfig) -> Callable[[], object]:
    if kind == "plain":
        return PlainLoop(settings, read_index(set_folder(settings.data)), processes=2).step
    loop = make_loop(make_run(Path(tempfile.mkdtemp(dir=settings.data.root)), settings), SoloComms())
    loop.resume()
    return loop._train_one_step


def tell_rate(kind: str, root: str, backbone: str, steps: int, *changes: str) -> None:
    """Images a second, printed; in a process of its own, as the memory settings are read at its start."""
    settings = config(root, backbone, changes)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    step = step_of(kind, settings)
    for _ in range(WARM_UP_STEPS):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    print(steps * settings.train.batch / (time.perf_counter() - start))


def measured(way: str, root: str, backbone: str, steps: int) -> float:
    kind, changes, env = WAYS[way]
    code = f"from tests.benchmarks.train import tell_rate; tell_rate{(kind, root, backbone, steps, *changes)!r}"
    whole = {**os.environ, **env}
    answer = subprocess.run([sys.executable, "-c", code], env=whole, check=True, capture_output=True, text=True)
    return float(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--backbone", default="resnet18")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        data = config(root, asked.backbone, ()).data
        prepare(data, source=None, fetch=False, report=lambda what, done, total: None)
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way in WAYS:
                rates[way].append(measured(way, root, asked.backbone, asked.steps))
    base = rates[next(iter(WAYS))]
    rows = [
        [way, spread(values, 1), f"{statistics.median(v / b for v, b in zip(values, base, strict=True)):.2f}x"]
        for way, values in rates.items()
    ]
    print_table([f"FMFSD {asked.backbone}, batch 128", "images/s", "ratio, median of rounds"], rows)


if __name__ == "__main__":
    main()
