"""Data benchmarks: preparing a set on one and two cores, a worker's start, and start, memory and speed by set size.

python -m tests.benchmarks.data [--source DIR with cifar-100-python/] [--scales 1,10,100] [--rounds N] [--scratch DIR]
python -m tests.benchmarks.data --only folders [--images N] [--rounds N]

Larger sets repeat the pixels of 781 random images, each stored separately on disk: scale 100 is 15 GB.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.numpy import save

from fmfsd.config import DataConfig
from fmfsd.data.loading.batches import EvaluationBatches, TrainBatches
from fmfsd.data.loading.load_shards import open_worker_shards
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import IMAGE_SHAPE, SetIndex, ShardFile, read_index
from fmfsd.data.shards.storage import WorkerShare
from fmfsd.system.atomic_files import free_space
from tests.benchmarks.table import print_table, spread
from tests.helpers.official import write_official

BATCH, SHARDS = 128, 64
PHOTOGRAPH = (500, 375)
SECONDS = 4.0
MIN_FREE_BYTES = 20 << 30
MAX_MEMORY_SHARE = 0.25
"""Largest share of the free memory that images may take: the machine also does other work."""


def time_preparation(source: Path | None, scratch: Path, rounds: int) -> SetIndex:
    """Prepare 60,000 images repeatedly, print the time and return the index; without `source`, generate files like the
    official ones."""
    origin = source or write_official(scratch / "source", "cifar100", train=50_000, test=10_000)
    seconds = []
    for number in range(rounds):
        start = time.perf_counter()
        data = DataConfig(name="cifar100", root=str(scratch / f"sets-{number}"))
        index = prepare(data, source=origin, fetch=False, report=lambda what, done, total: None)
        seconds.append(time.perf_counter() - start)
    print_table(["60,000 images to shards", "seconds"], [["fmfsd data prepare cifar100", spread(seconds, 2)]])
    print()
    return index


def print_folders(images: int, rounds: int, scratch: Path) -> None:
    """Time the preparation of `images` photographs on one core and on two alternately, each time in a new process."""
    source, cores = write_photographs(scratch / "photographs", images), sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("comparing one core with two needs two cores")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for count, times in seconds.items():
            out = scratch / f"folders-{number}-{count}"
            arguments = f"{str(source)!r}, {str(out)!r}, {cores[:count]}"
            times.append(float(run_code(f"from tests.benchmarks.data import time_folders as t; t({arguments})")))
            shutil.rmtree(out)
    ratios = [one / two for one, two in zip(*seconds.values(), strict=True)]
    rows = [[count, spread(times, 2), spread([images / each for each in times])] for count, times in seconds.items()]
    width, height = PHOTOGRAPH
    print_table(
        [f"cores, {images} JPEG images of {width} x {height} to shards of 256 pixels", "seconds", "images/s"], rows
    )
    print(f"\nTwo cores are {spread(ratios, 2)} times as fast as one.\n")


def time_folders(source: str, out: str, cores: Sequence[int]) -> None:
    """Print the seconds that preparing these image folders takes on these cores."""
    os.sched_setaffinity(0, cores)
    start = time.perf_counter()
    data = DataConfig(name="folder", root=out, size=224)
    prepare(data, source=Path(source), fetch=False, report=lambda what, done, total: None)
    print(time.perf_counter() - start)


def write_photographs(root: Path, images: int) -> Path:
    """Write images of ten classes, a tenth of them in the test split: smooth random colours plus noise, which compress
    like photographs."""
    random = np.random.default_rng(0)
    for number in range(images):
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        clouds = np.asarray(small.resize(PHOTOGRAPH, Image.Resampling.BICUBIC))
        noisy = clouds + random.normal(0, 12, (1, PHOTOGRAPH[0], 3))
        folder = root / ("test" if number % 10 == 0 else "train") / f"class{number // 10 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=85)
    return root


def run_code(code: str) -> str:
    """Run `code` in a new process and return its output."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def write_set(scratch: Path, scale: int) -> SetIndex:
    """Write a set of `scale` times 50,000 training images; the test split stays small."""
    folder = scratch / f"set-{scale}"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (781, *IMAGE_SHAPE), np.uint8)
    splits = {
        split: tuple(
            write_shard(folder, split, number, np.tile(pixels[:count], (times, 1, 1, 1))) for number in range(SHARDS)
        )
        for split, count, times in (("train", 781, scale), ("test", 156, 1))
    }
    classes = tuple(f"class{number}" for number in range(100))
    index = SetIndex(folder, "cifar100", IMAGE_SHAPE, classes, SHARDS, 0, 0, splits)
    index.write()
    return index


def write_shard(
    folder: Path, split: str, number: int, images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
) -> ShardFile:
    ids = np.arange(len(images), dtype=np.int64) * SHARDS + number
    content = save({"images": images, "labels": ids % 100, "ids": ids})
    path = folder / f"{split}-{number:04d}.safetensors"
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return ShardFile(path.name, len(images), len(content), hashlib.sha256(content).hexdigest())


def drop_from_page_cache(index: SetIndex) -> None:
    """Drop the set's files from the page cache, so that the next read comes from the disk."""
    for shard in (shard for files in index.splits.values() for shard in files):
        descriptor = os.open(index.path(shard), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure_start(index: SetIndex, workers: int, *, in_files: bool, seconds: float) -> dict[str, float]:
    """Run `print_start` in a new process: rank 0 of `workers`, alone on the machine."""
    arguments = f"{str(index.folder)!r}, {workers}, {in_files}, {seconds}"
    code = f"from tests.benchmarks.data import print_start; print_start({arguments})"
    return dict(json.loads(run_code(code)))


def print_start(folder: str, workers: int, in_files: bool, seconds: float) -> None:
    """Print seconds and CPU seconds to the first batch, the growth of this process's memory in MiB, and the images/s of
    the batches that follow."""
    torch.set_num_threads(1)
    index, data, cpu = read_index(Path(folder)), DataConfig(name="cifar100"), torch.device("cpu")
    before = psutil.Process().memory_full_info().uss
    start, computed = time.perf_counter(), time.process_time()
    train, test = (
        open_worker_shards(index, split, rank=0, world_size=workers, device=cpu, stream=in_files)
        for split in ("train", "test")
    )
    batches = TrainBatches(train, data, seed=0, per_shard=BATCH // SHARDS, dtype=torch.float32)
    evaluation = EvaluationBatches(test, data, batch=500, largest_part=len(test.labels), dtype=torch.float32)
    with closing(batches), closing(evaluation):
        batches.load_batch(0, 0)
        values = {"start": time.perf_counter() - start, "computed": time.process_time() - computed, "images": 0.0}
        start = time.perf_counter()
        for place in positions(min(train.sizes) // batches.per_shard):
            if time.perf_counter() - start >= seconds:
                break
            values["images"] += len(batches.load_batch(*place)[1])
        values["rate"] = values["images"] / (time.perf_counter() - start)
        values["held"] = (psutil.Process().memory_full_info().uss - before) / 2**20
    print(json.dumps(values))


def positions(steps: int) -> Iterator[tuple[int, int]]:
    return ((number // steps, number % steps) for number in range(1, 10**9))


def print_starts(index: SetIndex, rounds: int) -> None:
    rows = []
    for workers in (1, 2, 4):
        measurements: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(rounds):
            for in_files, each in measurements.items():
                each.append(measure_start(index, workers, in_files=in_files, seconds=0))
        values = [
            [each[name] for each in measurements[in_files]]
            for in_files in measurements
            for name in ("start", "computed")
        ]
        rows.append([workers, *(spread(each, 2) for each in values)])
    columns = (f"{where}: {what}" for where in ("images in memory", "in files") for what in ("s", "CPU s"))
    print_table(["workers", *columns], rows)
    print()


def rows_of(index: SetIndex, scale: int, rounds: int) -> Iterator[list[object]]:
    for workers in (1, 4):
        part, free = WorkerShare.from_index(index, workers), psutil.virtual_memory().available
        for in_files, cold in ((False, False), (True, False), (True, True)):
            where = f"files{', read for the first time' if cold else ''}" if in_files else "memory"
            if not in_files and part.in_memory_bytes > MAX_MEMORY_SHARE * free:
                yield [
                    f"{scale * 50_000:,}",
                    workers,
                    where,
                    f"not tried: {part.in_memory_bytes >> 20:,} MiB",
                    "",
                    "",
                    "",
                ]
                continue
            measurements = []
            for _ in range(rounds):
                if cold:
                    drop_from_page_cache(index)
                measurements.append(measure_start(index, workers, in_files=in_files, seconds=SECONDS))
            start, computed, rate = (
                spread([each[name] for each in measurements], digits)
                for name, digits in (("start", 2), ("computed", 2), ("rate", 0))
            )
            held = f"{median(each['held'] for each in measurements):,.0f}"
            yield [f"{scale * 50_000:,}", workers, where, start, computed, held, rate]


def print_growth(scales: Sequence[int], rounds: int, scratch: Path) -> None:
    rows: list[list[object]] = []
    for scale in scales:
        needed = scale * 50_000 * 3088
        if free_space(scratch)[0] - needed < MIN_FREE_BYTES:
            limit = MIN_FREE_BYTES >> 30
            sys.exit(f"{scratch}: a set of {needed >> 30} GiB would leave less than {limit} GiB free: set --scales")
        index = write_set(scratch, scale)
        rows += rows_of(index, scale, rounds)
        shutil.rmtree(index.folder)
    header = [
        "training images",
        "workers",
        "images in",
        "s to the first batch",
        "CPU s, all threads",
        "MiB per worker",
        "images/s, 1 core",
    ]
    print_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, help="has cifar-100-python/ or its archive; default: generated files of the same form"
    )
    parser.add_argument("--scales", default="1,10", help="set sizes, in units of 50,000 images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["folders"], help="measure only this part; default: all")
    parser.add_argument("--images", type=int, default=3000, help="number of photographs to prepare")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        print_folders(options.images, options.rounds, Path(scratch))
        if options.only:
            return
        print_starts(time_preparation(options.source, Path(scratch), options.rounds), options.rounds)
        print_growth([int(scale) for scale in options.scales.split(",")], options.rounds, Path(scratch))


if __name__ == "__main__":
    main()
