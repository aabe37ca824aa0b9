"""Streaming of images from files: equal to images in memory, a bounded prefetch window, and errors with file names."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fmfsd.config import DataConfig
from fmfsd.data.loading import load_shards
from fmfsd.data.loading.batches import EvaluationBatches, TrainBatches
from fmfsd.data.loading.load_shards import open_worker_shards, should_stream_images
from fmfsd.data.loading.shards_streaming import MAX_PREFETCHED_BATCHES, StreamedShards, _Prefetcher
from fmfsd.data.shards.index import SetIndex, prepared_set_folder, read_index
from fmfsd.data.shards.shard_file import ShardReader
from fmfsd.data.shards.storage import WorkerShare
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import DataError
from fmfsd.system.memory import usable_memory
from launcher.agent.available_resources import Resources
from tests.helpers.runs import make_loop, make_run, newest_weights, read_records, tiny_config, train_run
from tests.helpers.workers import run_workers

CPU = torch.device("cpu")
STRONG = {"autoaugment": True, "cutout": 16, "mixup": 0.2, "cutmix": 1.0, "resized_crop": True, "crop_padding": 0}
RECIPES: dict[str, dict[str, Any]] = {"plain": {}, "mixed": {"mixup": 0.2}, "all": STRONG}


@pytest.fixture
def index(tiny_root: Path) -> SetIndex:
    return read_index(tiny_root / "cifar10-shards16")


@pytest.fixture
def index_copy(index: SetIndex, tmp_path: Path) -> SetIndex:
    """Return the index of a copy of the set, which tests may damage."""
    shutil.copytree(index.folder, tmp_path / "set")
    return read_index(tmp_path / "set")


def train_batches(index: SetIndex, recipe: str, rank: int, world_size: int, *, in_files: bool) -> TrainBatches:
    data = DataConfig(name="cifar10", **RECIPES[recipe])
    shards = open_worker_shards(index, "train", rank=rank, world_size=world_size, device=CPU, stream=in_files)
    return TrainBatches(shards, data, seed=5, per_shard=2, dtype=torch.float32)


def on_disk(index: SetIndex) -> StreamedShards:
    return StreamedShards(index, "train", rank=0, world_size=2, device=CPU)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_batches_are_bit_for_bit_those_of_images_in_memory(
    recipe: str, rank: int, world_size: int, index: SetIndex
) -> None:
    """Two epochs in order, and then positions that were not prefetched."""
    in_memory, streamed = (
        train_batches(index, recipe, rank, world_size, in_files=in_files) for in_files in (False, True)
    )
    in_order = [(epoch, micro_step) for epoch in range(2) for micro_step in range(8)]
    with closing(streamed):
        for position in [*in_order, (1, 5), (1, 2), (7, 4)]:
            assert all(map(torch.equal, in_memory.load_batch(*position), streamed.load_batch(*position)))
            assert torch.equal(in_memory.ids(*position), streamed.ids(*position))


def test_evaluation_batches_are_those_of_images_in_memory(index: SetIndex) -> None:
    shards_by_mode = [
        open_worker_shards(index, "test", rank=1, world_size=2, device=CPU, stream=each) for each in (False, True)
    ]
    in_memory, streamed = (
        EvaluationBatches(shards, DataConfig(), batch=11, largest_part=40, dtype=torch.float32)
        for shards in shards_by_mode
    )
    with closing(streamed):
        for number in [0, 1, 2, 3, 0, 2]:
            assert all(map(torch.equal, in_memory.load_raw_batch(number), streamed.load_raw_batch(number)))
            assert all(map(torch.equal, in_memory.load_batch(number), streamed.load_batch(number)))


@pytest.mark.usefixtures("processes")
def test_a_run_may_change_to_streaming_and_stays_bit_for_bit_the_same(tiny_root: Path, tmp_path: Path) -> None:
    """Two workers, stopped in the middle of an epoch; the attention maps are the same, too."""
    small = ("data.shards=16", "train.batch=32", "train.micro_batch=16", "train.max_steps=9", "data.mixup=0.2")
    whole, parted = (make_run(tmp_path / name, tiny_config(tiny_root, *small)) for name in ("whole", "parted"))
    assert run_workers(train_run, 2, whole.path) == ["finished"] * 2
    assert run_workers(train_run, 2, parted.path, 3) == ["stopped"] * 2
    make_run(parted.path, tiny_config(tiny_root, *small, "data.images_in=files"))
    assert run_workers(train_run, 2, parted.path) == ["finished"] * 2
    assert read_records(parted) == read_records(whole)
    assert newest_weights(parted) == newest_weights(whole)
    assert parted.attention_images.read_bytes() == whole.attention_images.read_bytes()


def test_only_a_window_is_prefetched_and_earlier_batches_are_dropped() -> None:
    requested: list[int] = []

    def read(chosen: Tensor) -> Tensor:
        requested.append(int(chosen))
        return chosen

    order = torch.arange(100)
    with ThreadPoolExecutor(1) as pool:
        ahead = _Prefetcher(pool, read, order, depth=4)
        assert [int(ahead.take(number)) for number in (0, 1, 50, 51, 99)] == [0, 1, 50, 51, 99]
        assert not ahead._pending
    assert set(requested) <= {*range(6), *range(50, 56), 99}
    assert len(requested) == len(set(requested)), "nothing is read twice"


def test_the_window_is_bounded_by_bytes(index: SetIndex) -> None:
    with closing(on_disk(index)) as shards:
        assert shards._depth(torch.zeros(9, 16)) == MAX_PREFETCHED_BATCHES
        assert shards._depth(torch.zeros(9, 10_000)) == 2
        assert shards._depth([]) == MAX_PREFETCHED_BATCHES


def test_the_prefetch_thread_ends_with_the_run_even_after_an_error(tiny_root: Path, tmp_path: Path) -> None:
    """`tests/conftest.py` checks for leaked threads."""
    sizes = ("data.shards=16", "train.batch=16", "train.max_steps=2")
    root = tmp_path / "root"
    shutil.copytree(tiny_root / "cifar10-shards16", root / "cifar10-shards16")
    run = make_run(tmp_path / "run", tiny_config(root, *sizes, "data.images_in=files"))
    with closing(make_loop(run, SingleWorkerComms())) as loop:
        loop.resume()
        os.truncate(root / "cifar10-shards16" / "test-0003.safetensors", 5000)
        with pytest.raises(DataError, match=r"test-0003\.safetensors: damaged: 5000 bytes, expected"):
            loop.run()


def delete_file(path: Path) -> None:
    path.unlink()


def append_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def truncate_file(path: Path) -> None:
    os.truncate(path, 3000)


@pytest.mark.fault("F17")
@pytest.mark.parametrize("in_files", [True, False])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [(delete_file, "can't be read"), (append_byte, "bytes, expected"), (truncate_file, "3000 bytes, expected")],
)
def test_a_shard_that_does_not_match_the_index_is_an_error_at_the_start(
    damage: Callable[[Path], None], expected: str, in_files: bool, index_copy: SetIndex
) -> None:
    damage(index_copy.folder / "train-0005.safetensors")
    with pytest.raises(DataError, match=rf"train-0005\.safetensors: .*{expected}"):
        open_worker_shards(index_copy, "train", rank=0, world_size=1, device=CPU, stream=in_files)
    open_worker_shards(index_copy, "train", rank=1, world_size=2, device=CPU, stream=in_files).close()


@pytest.mark.fault("F17")
def test_a_shard_that_is_truncated_during_training_is_an_error_and_not_a_signal(index_copy: SetIndex) -> None:
    with closing(train_batches(index_copy, "plain", 0, 1, in_files=True)) as batches:
        os.truncate(index_copy.folder / "train-0002.safetensors", 1000)
        with pytest.raises(DataError, match=r"train-0002\.safetensors: damaged: 1000 bytes, expected"):
            batches.load_batch(0, 0)


@pytest.mark.fault("F17")
def test_a_disk_error_names_the_file(index: SetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_io_error(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(train_batches(index, "plain", 0, 1, in_files=True)) as batches:
        monkeypatch.setattr(os, "preadv", raise_io_error)
        with pytest.raises(DataError, match=r"train-\d{4}\.safetensors: can't be read: .*Input/output error"):
            batches.load_batch(0, 0)


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "images of another shape": lambda header: header["images"].update(shape=[16, 3, 32, 31]),
    "images of another type": lambda header: header["images"].update(dtype="I8"),
    "images elsewhere": lambda header: header["images"].update(data_offsets=[0, 16 * 3072]),
    "no labels": lambda header: header.pop("labels"),
    "fewer labels": lambda header: header["labels"].update(shape=[15]),
    "labels before the file": lambda header: header["labels"].update(data_offsets=[-8, 120]),
    "ids beyond the images": lambda header: header["ids"].update(data_offsets=[10**9, 10**9 + 128]),
    "ids that are no table": lambda header: header.update(ids=3),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_an_invalid_shard_header_is_an_error(damage: str, index: SetIndex) -> None:
    with closing(ShardReader(index, index.splits["train"][0])) as file:
        head = file.read_head()
        length = int.from_bytes(head[:8], "little")
        header = json.loads(head[8 : 8 + length])
        HEADERS[damage](header)
        damaged_header = json.dumps(header, separators=(",", ":")).encode().ljust(length)[:length]
        with pytest.raises(DataError, match=r"train-0000\.safetensors: damaged: its header is not that of a shard"):
            file.parse_labels_and_ids(head[:8] + damaged_header + head[8 + length :])


def test_invalid_labels_are_an_error_even_without_checking_the_checksum(index: SetIndex) -> None:
    with closing(ShardReader(index, index.splits["train"][0])) as file:
        head, labels = file.read_head(), file.parse_labels_and_ids(file.read_head())[0]
        damaged_head = head.replace(labels.tobytes(), (labels + 10).tobytes())
        with pytest.raises(DataError, match=r"damaged: labels from 1\d to 1\d, expected 0 to 9"):
            file.parse_labels_and_ids(damaged_head)


@given(noise=st.binary(min_size=1, max_size=40), position=st.integers(0, 10_000))
def test_random_changes_of_a_header_are_at_worst_a_data_error(noise: bytes, position: int, tiny_root: Path) -> None:
    index = read_index(tiny_root / "cifar10-shards16")
    with closing(ShardReader(index, index.splits["train"][0])) as file:
        head = bytearray(file.read_head())
        start = position % len(head)
        head[start : start + len(noise)] = noise[: len(head) - start]
        try:
            labels, ids = file.parse_labels_and_ids(bytes(head))
        except DataError:
            return
        assert len(labels) == len(ids) == 16


def test_images_are_streamed_if_they_would_take_more_than_half_of_the_memory() -> None:
    part = WorkerShare(samples=1000, image_bytes=3072, splits=2)
    enough = 2 * part.in_memory_bytes
    configs = {name: DataConfig(images_in=name) for name in ("auto", "memory", "files")}
    assert [part.should_stream(configs["auto"], memory) for memory in (0, enough - 2, enough)] == [False, True, False]
    assert not part.should_stream(configs["memory"], 1)
    assert part.should_stream(configs["files"], 1 << 60)


def test_a_worker_with_little_memory_streams_its_images(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(name="cifar10", root=str(tiny_root))
    index = read_index(prepared_set_folder(data))
    assert not should_stream_images(data, index, SingleWorkerComms(), CPU)
    monkeypatch.setattr(load_shards, "usable_memory", lambda: 1 << 20)
    assert should_stream_images(data, index, SingleWorkerComms(), CPU)


def test_worker_and_launcher_detect_the_same_memory() -> None:
    assert usable_memory() == Resources.detect({}).memory
