"""Sampling order: independent of the number of workers, each sample at most once per epoch, and reproducible."""

import os
import resource
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fmfsd.config import DataConfig
from fmfsd.data.loading.batches import EvaluationBatches, TrainBatches
from fmfsd.data.loading.shards_in_memory import ShardsInMemory, load_worker_shards
from fmfsd.data.sampling import draw_shard_epoch, to_integers
from fmfsd.data.shards.index import SetIndex, read_index
from fmfsd.data.shards.shard_writer import write_shard
from fmfsd.data.shards.storage import MAX_READERS, STAGING_BYTES
from fmfsd.distributed.collectives import Comms
from fmfsd.errors import DataError
from tests.helpers.workers import run_workers


def own_shards(sizes: list[int], numbers: range) -> ShardsInMemory:
    """Return the shards `numbers` of a set of black images with ids 1000 * shard + position."""
    ids = torch.tensor([1000 * number + position for number in numbers for position in range(sizes[number])])
    images = torch.zeros(len(ids), 3, 4, 4, dtype=torch.uint8)
    return ShardsInMemory(
        images, torch.zeros_like(ids), ids, tuple(numbers), tuple(sizes[number] for number in numbers)
    )


def batches(sizes: list[int], rank: int, world_size: int, per_shard: int, seed: int) -> TrainBatches:
    share = len(sizes) // world_size
    shards = own_shards(sizes, range(rank * share, (rank + 1) * share))
    return TrainBatches(shards, DataConfig(), seed=seed, per_shard=per_shard, dtype=torch.float32)


@given(
    shards=st.sampled_from([4, 6, 12]),
    smallest=st.integers(2, 9),
    larger=st.integers(0, 12),
    per_shard=st.integers(1, 3),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**31),
)
def test_a_global_batch_is_the_same_for_any_number_of_workers(
    shards: int, smallest: int, larger: int, per_shard: int, seed: int, epoch: int
) -> None:
    sizes = [smallest + (number < larger) for number in range(shards)]
    steps = min(sizes) // per_shard
    alone = batches(sizes, 0, 1, per_shard, seed)
    expected = [alone.ids(epoch, step) for step in range(steps)]
    sampled = torch.cat(expected).tolist() if expected else []
    assert len(set(sampled)) == len(sampled) == steps * per_shard * shards
    for world_size in (size for size in range(2, shards + 1) if shards % size == 0):
        workers = [batches(sizes, rank, world_size, per_shard, seed) for rank in range(world_size)]
        for step in range(steps):
            assert torch.equal(torch.cat([worker.ids(epoch, step) for worker in workers]), expected[step])


def test_micro_batches_of_half_the_size_hold_the_samples_of_the_batch() -> None:
    whole, half = (batches([8] * 4, 0, 1, per_shard, 3) for per_shard in (2, 1))
    for step in range(4):
        pair = torch.cat([half.ids(0, 2 * step), half.ids(0, 2 * step + 1)])
        assert sorted(pair.tolist()) == sorted(whole.ids(0, step).tolist())


def test_epochs_shards_and_seeds_have_different_orders() -> None:
    orders = {
        draw_shard_epoch(seed, epoch, shard, 50).permutation.tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for shard in (0, 1)
    }
    assert len(orders) == 8


def test_different_epochs_leave_out_different_samples() -> None:
    sizes = [5] * 4
    left_out = []
    for epoch in range(6):
        sampled = {number for step in range(2) for number in batches(sizes, 0, 1, 2, 0).ids(epoch, step).tolist()}
        left_out.append(frozenset(range(5)) - {number % 1000 for number in sampled if number < 1000})
    assert all(len(each) == 1 for each in left_out)
    assert len(set(left_out)) > 1


def test_the_order_is_that_of_numpys_philox() -> None:
    """Pinned values: a change would change the order of every run (key 7, (3 << 32) | 2; NumPy's `random_raw`)."""
    order = draw_shard_epoch(7, 3, 2, 5)
    assert order.permutation.tolist() == [2, 1, 0, 4, 3]
    assert order.random_bits[0].tolist() == [17517598195444341551, 13806165096732131116]


def test_a_batch_is_augmented_as_in_the_table_of_draws(tiny_root: Path) -> None:
    """Each sample has its own draws: flip, crop, Cutout."""
    data = DataConfig(crop_padding=4, crop_fill=128, cutout=8)
    shards = load_worker_shards(read_index(tiny_root / "cifar10"), "train", rank=1, world_size=2)
    train_batches = TrainBatches(shards, data, seed=3, per_shard=2, dtype=torch.float64)
    images, labels = train_batches.load_batch(5, 1)
    draws, chosen = train_batches.epoch_table(5).draws, train_batches.epoch_table(5).sample[1]
    assert torch.equal(labels, shards.labels[chosen])
    for number, sample in enumerate(chosen):
        top, left, row, column = (int(draws[name][1][number]) for name in ("top", "left", "row", "column"))
        expected = shards.images[sample]
        expected = expected.flip(-1) if draws["mirrored"][1][number] else expected
        expected = F.pad(expected, (4, 4, 4, 4), value=128)[:, top : top + 32, left : left + 32].clone()
        expected[:, max(0, row - 4) : row + 4, max(0, column - 4) : column + 4] = 0
        mean, std = data.channel_statistics
        scaled = [(expected[c].double() / 255 - mean[c]) / std[c] for c in range(3)]
        torch.testing.assert_close(images[number], torch.stack(scaled), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("below", [1, 2, 9, 32])
def test_draws_are_uniform(below: int) -> None:
    random_words = np.random.Philox(key=np.array([1, 2], np.uint64)).random_raw(90_000)
    for field in range(4):
        counts = np.bincount(to_integers(random_words, below, field=field), minlength=below)
        assert len(counts) == below
        assert counts == pytest.approx(90_000 / below, rel=0.1)


def test_a_worker_loads_only_its_own_shards(tiny_root: Path) -> None:
    index = read_index(tiny_root / "cifar10")
    parts = [load_worker_shards(index, "train", rank=rank, world_size=4) for rank in range(4)]
    assert [part.images.nbytes for part in parts] == [256 * 3072 // 4] * 4
    assert [part.numbers for part in parts] == [tuple(range(16 * rank, 16 * rank + 16)) for rank in range(4)]
    whole = load_worker_shards(index, "train", rank=0, world_size=1)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert sorted(whole.ids.tolist()) == list(range(256))


@pytest.mark.fault("F17")
def test_a_worker_verifies_the_shards_that_it_reads(tiny_root: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "set"
    shutil.copytree(tiny_root / "cifar10", folder)
    path = folder / "train-0005.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    index = read_index(folder)
    load_worker_shards(index, "train", rank=1, world_size=2)
    with pytest.raises(DataError, match="train-0005.safetensors: damaged"):
        load_worker_shards(index, "train", rank=0, world_size=2)


@pytest.mark.parametrize("piece", [1000, 3072 * 4, 1 << 25])
def test_images_reach_another_device_piece_by_piece(
    piece: int, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the CPU, patched to look like a device other than that to which files are read."""
    index = read_index(tiny_root / "cifar10-shards6")
    expected = load_worker_shards(index, "train", rank=0, world_size=1)
    monkeypatch.setattr("fmfsd.data.loading.shards_in_memory.CPU", torch.device("meta"))
    monkeypatch.setattr("fmfsd.data.loading.shards_in_memory.STAGING_BYTES", piece)
    shards = load_worker_shards(index, "train", rank=0, world_size=1, device=torch.device("cpu"))
    assert torch.equal(shards.images, expected.images)
    assert torch.equal(shards.labels, expected.labels)


def large_set(folder: Path) -> Path:
    """Write a set of four shards of 60 MiB."""
    count = 20_000
    shape, image, labels = (3, 32, 32), bytes(3 * 32 * 32), np.zeros(count, np.int64)
    files = [
        write_shard(
            folder / f"train-{shard:04d}.safetensors", repeat(image, count), labels, labels + shard * count, shape
        )
        for shard in range(4)
    ]
    classes = tuple(f"class{number}" for number in range(10))
    splits = {"train": tuple(files), "test": tuple(files)}
    SetIndex(folder, "synthetic10", (3, 32, 32), classes, 4, 0, 0, splits).write()
    return folder


def measure_growth(_comms: Comms, small: Path, large: Path) -> tuple[int, int]:
    """Return the bytes by which this process grows, and those of the images, which are loaded to the meta device."""
    load_worker_shards(read_index(small), "train", rank=0, world_size=1, device=torch.device("meta"))
    index, before = read_index(large), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = load_worker_shards(index, "train", rank=0, world_size=1, device=torch.device("meta"))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10, own.images.nbytes


@pytest.mark.usefixtures("processes")
def test_images_for_a_gpu_are_never_all_in_main_memory(tiny_root: Path, tmp_path: Path) -> None:
    ((growth, images),) = run_workers(measure_growth, 1, tiny_root / "cifar10", large_set(tmp_path))
    assert images > 230 << 20
    assert growth < min(MAX_READERS, len(os.sched_getaffinity(0))) * STAGING_BYTES + (16 << 20)


def test_evaluation_uses_every_sample_once_and_all_ranks_have_equally_many_batches(tiny_root: Path) -> None:
    index = read_index(tiny_root / "cifar10-shards6")
    batch_sizes, counts = [], set()
    for rank in range(3):
        own = load_worker_shards(index, "test", rank=rank, world_size=3)
        largest = index.max_worker_samples("test", 3)
        part = EvaluationBatches(own, DataConfig(), batch=11, largest_part=largest, dtype=torch.float32)
        counts.add(len(part))
        batch_sizes += [len(part.load_batch(number)[1]) for number in range(len(part))]
    assert sum(batch_sizes) == 64
    assert len(counts) == 1
