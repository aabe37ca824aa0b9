"""Input benchmark: augmented, normalised batches from shards on one core against torchvision's PIL pipeline, and
memory.

python -m tests.benchmarks.input [--root DIR with a prepared cifar100] [--rounds N]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch

from fmfsd.config import DataConfig
from fmfsd.data.loading.batches import TrainBatches
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import SetIndex, read_index
from tests.benchmarks.peer import pil_loader
from tests.benchmarks.table import print_table, spread

BATCH = 128
SECONDS = 4.0
WORLD_SIZE = 4


def images_per_s(next_batch: Callable[[], object]) -> float:
    """Return images/s over SECONDS, after three warm-up batches."""
    for _ in range(3):
        next_batch()
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next_batch()
        batches += 1
    return batches * BATCH / (time.perf_counter() - start)


def from_shards(index: SetIndex, data: DataConfig) -> Callable[[], object]:
    shards = load_worker_shards(index, "train", rank=0, world_size=1)
    batches = TrainBatches(shards, data, seed=0, per_shard=BATCH // index.shards, dtype=torch.float32)
    steps = min(shards.sizes) // batches.per_shard
    position = iter(divmod(step, steps) for step in range(10**9))
    return lambda: batches.load_batch(*next(position))


def from_pil(index: SetIndex, data: DataConfig, processes: int) -> Callable[[], object]:
    loader = pil_loader(index, data, batch=BATCH, processes=processes)
    endless = (batch for _ in range(10**9) for batch in loader)
    return lambda: next(endless)


def compare(what: str, variants: Mapping[str, Callable[[], Callable[[], object]]], rounds: int) -> None:
    """Print a table of images/s, measured round-robin; ratios are to the first variant."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, start in variants.items():
            rates[name].append(images_per_s(start()))
    base = median(next(iter(rates.values())))
    rows = [[name, spread(values), f"{median(values) / base:.1f}x"] for name, values in rates.items()]
    print_table([f"batches of {BATCH}, {what}", "images/s", "ratio"], rows)
    print()


def worker_memory(folder: Path) -> tuple[int, int]:
    """Return the bytes of the tensors and the memory growth of one worker of WORLD_SIZE, measured in a new process."""
    code = f"from tests.benchmarks.input import print_memory; print_memory({str(folder)!r})"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    tensors, growth = map(int, answer.stdout.split())
    return tensors, growth


def print_memory(folder: str) -> None:
    index = read_index(Path(folder))
    before = psutil.Process().memory_full_info().uss
    own = load_worker_shards(index, "train", rank=0, world_size=WORLD_SIZE)
    growth = psutil.Process().memory_full_info().uss - before
    print(own.images.nbytes + own.labels.nbytes + own.ids.nbytes, growth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder with a prepared cifar100; default: a synthetic set")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        data = DataConfig(name="cifar100" if options.root else "synthetic100", root=str(options.root or scratch))
        index = prepare(data, source=None, fetch=False, report=lambda what, done, total: None)
        pil = {
            "PIL, 1 process": lambda: from_pil(index, data, 0),
            "PIL, DataLoader of 2 processes": lambda: from_pil(index, data, 2),
        }
        compare("crop and flip", pil | {"shards, 1 core": lambda: from_shards(index, data)}, options.rounds)
        strong = data.model_copy(update={"autoaugment": True})
        recipes = {
            "shards, 1 core": strong,
            "the same and Cutout 16": strong.model_copy(update={"cutout": 16}),
            "the same and MixUp": strong.model_copy(update={"cutout": 16, "mixup": 0.2}),
            "resized crops instead of padded ones": strong.model_copy(update={"resized_crop": True, "crop_padding": 0}),
        }
        variants = {"PIL, 1 process": lambda: from_pil(index, strong, 0)}
        variants |= {name: partial(from_shards, index, recipe) for name, recipe in recipes.items()}
        compare("crop, flip and AutoAugment", variants, options.rounds)
        tensors, growth = worker_memory(index.folder)
        whole = index.num_samples("train") * 3 * 32 * 32
        shares = [
            [name, f"{size / 2**20:.1f}", f"{size / whole:.3f}"]
            for name, size in (("tensors", tensors), ("process", growth))
        ]
        print_table([f"memory of one worker of {WORLD_SIZE}", "MiB", "share of the set's pixels"], shares)


if __name__ == "__main__":
    main()
