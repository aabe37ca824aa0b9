"""Images that stay in their files: the same bits as in memory, a bounded window, and errors that name the file."""

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
from fmfsd.data.loading.load_shards import images_stay_in_files, own_shards
from fmfsd.data.loading.shards_streaming import MOST_BATCHES, ShardsOnDisk, _Ahead
from fmfsd.data.shards.index import SetIndex, read_index, set_folder
from fmfsd.data.shards.shard_file import OpenShard
from fmfsd.data.shards.storage import Part
from fmfsd.distributed.collectives import SoloComms
from fmfsd.errors import DataError
from fmfsd.system.memory import usable_memory
from launcher.agent.resources import Resources
from tests.helpers.runs import make_loop, make_run, newest_weights, records, tiny_config, train_run
from tests.helpers.workers import run_workers

CPU = torch.device("cpu")
STRONG = {"autoaugment": True, "cutout": 16, "mixup": 0.2, "cutmix": 1.0, "resized_crop": True, "crop_padding": 0}
RECIPES: dict[str, dict[str, Any]] = {"plain": {}, "mixed": {"mixup": 0.2}, "all": STRONG}


@pytest.fixture
def index(tiny_root: Path) -> SetIndex:
    return read_index(tiny_root / "cifar10-shards16")


@pytest.fixture
def copied(index: SetIndex, tmp_path: Path) -> SetIndex:
    """That may be damaged."""
    shutil.copytree(index.folder, tmp_path / "set")
    return read_index(tmp_path / "set")


def train_batches(index: SetIndex, recipe: str, rank: int, world_size: int, *, in_files: bool) -> TrainBatches:
    data = DataConfig(name="cifar10", **RECIPES[recipe])
    shards = own_shards(index, "train", rank=rank, world_size=world_size, device=CPU, in_files=in_files)
    return TrainBatches(shards, data, seed=5, per_shard=2, dtype=torch.float32)


def on_disk(index: SetIndex) -> ShardsOnDisk:
    return ShardsOnDisk(index, "train", rank=0, world_size=2, device=CPU)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_batches_are_bit_for_bit_those_of_images_in_memory(
    recipe: str, rank: int, world_size: int, index: SetIndex
) -> None:
    """Over two epochs, and then at positions that nobody saw coming."""
    held, read = (train_batches(index, recipe, rank, world_size, in_files=in_files) for in_files in (False, True))
    through = [(epoch, micro_step) for epoch in range(2) for micro_step in range(8)]
    with closing(read):
        for place in [*through, (1, 5), (1, 2), (7, 4)]:
            assert all(map(torch.equal, held.at(*place), read.at(*place)))
            assert torch.equal(held.ids(*place), read.ids(*place))


def test_evaluation_sees_the_same_in_the_same_order(index: SetIndex) -> None:
    ways = [own_shards(index, "test", rank=1, world_size=2, device=CPU, in_files=each) for each in (False, True)]
    held, read = (
        EvaluationBatches(shards, DataConfig(), batch=11, largest_part=40, dtype=torch.float32) for shards in ways
    )
    with closing(read):
        for number in [0, 1, 2, 3, 0, 2]:
            assert all(map(torch.equal, held.stored(number), read.stored(number)))
            assert all(map(torch.equal, held.at(number), read.at(number)))


@pytest.mark.usefixtures("processes")
def test_a_run_is_bit_for_bit_the_same_and_may_change_between_the_two(tiny_root: Path, tmp_path: Path) -> None:
    """Two workers, stopped in the middle of an epoch; the pictures of the attention are the same too."""
    small = ("data.shards=16", "train.batch=32", "train.micro_batch=16", "train.max_steps=9", "data.mixup=0.2")
    whole, parted = (make_run(tmp_path / name, tiny_config(tiny_root, *small)) for name in ("whole", "parted"))
    assert run_workers(train_run, 2, whole.path) == ["finished"] * 2
    assert run_workers(train_run, 2, parted.path, 3) == ["stopped"] * 2
    make_run(parted.path, tiny_config(tiny_root, *small, "data.images_in=files"))
    assert run_workers(train_run, 2, parted.path) == ["finished"] * 2
    assert records(parted) == records(whole)
    assert newest_weights(parted) == newest_weights(whole)
    assert parted.pictures.read_bytes() == whole.pictures.read_bytes()


def test_no_more_than_a_window_is_read_ahead_and_what_is_behind_is_forgotten() -> None:
    asked: list[int] = []

    def read(chosen: Tensor) -> Tensor:
        asked.append(int(chosen))
        return chosen

    order = torch.arange(100)
    with ThreadPoolExecutor(1) as pool:
        ahead = _Ahead(pool, read, order, depth=4)
        assert [int(ahead.take(number)) for number in (0, 1, 50, 51, 99)] == [0, 1, 50, 51, 99]
        assert not ahead._begun
    assert set(asked) <= {*range(6), *range(50, 56), 99}
    assert len(asked) == len(set(asked)), "nothing is read twice"


def test_the_window_is_bounded_by_bytes(index: SetIndex) -> None:
    with closing(on_disk(index)) as shards:
        assert shards._depth(torch.zeros(9, 16)) == MOST_BATCHES
        assert shards._depth(torch.zeros(9, 10_000)) == 2
        assert shards._depth([]) == MOST_BATCHES


def test_its_thread_ends_with_the_run_however_that_ends(tiny_root: Path, tmp_path: Path) -> None:
    """Our conftest looks for threads that are left."""
    sizes = ("data.shards=16", "train.batch=16", "train.max_steps=2")
    root = tmp_path / "root"
    shutil.copytree(tiny_root / "cifar10-shards16", root / "cifar10-shards16")
    run = make_run(tmp_path / "run", tiny_config(root, *sizes, "data.images_in=files"))
    with closing(make_loop(run, SoloComms())) as loop:
        loop.resume()
        os.truncate(root / "cifar10-shards16" / "test-0003.safetensors", 5000)
        with pytest.raises(DataError, match=r"test-0003\.safetensors: damaged: 5000 bytes, expected"):
            loop.run()


def missing(path: Path) -> None:
    path.unlink()


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def cut_short(path: Path) -> None:
    os.truncate(path, 3000)


@pytest.mark.fault("F17")
@pytest.mark.parametrize("in_files", [True, False])
@pytest.mark.parametrize(
    ("damage", "told"), [(missing, "can't be read"), (longer, "bytes, expected"), (cut_short, "3000 bytes, expected")]
)
def test_a_file_that_is_not_what_the_index_says_is_named_at_the_start(
    damage: Callable[[Path], None], told: str, in_files: bool, copied: SetIndex
) -> None:
    damage(copied.folder / "train-0005.safetensors")
    with pytest.raises(DataError, match=rf"train-0005\.safetensors: .*{told}"):
        own_shards(copied, "train", rank=0, world_size=1, device=CPU, in_files=in_files)
    own_shards(copied, "train", rank=1, world_size=2, device=CPU, in_files=in_files).close()


@pytest.mark.fault("F17")
def test_a_file_that_is_cut_short_in_training_is_an_error_with_its_name_and_no_signal(copied: SetIndex) -> None:
    with closing(train_batches(copied, "plain", 0, 1, in_files=True)) as batches:
        os.truncate(copied.folder / "train-0002.safetensors", 1000)
        with pytest.raises(DataError, match=r"train-0002\.safetensors: damaged: 1000 bytes, expected"):
            batches.at(0, 0)


@pytest.mark.fault("F17")
def test_a_disk_that_fails_is_an_error_that_names_the_file(index: SetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(train_batches(index, "plain", 0, 1, in_files=True)) as batches:
        monkeypatch.setattr(os, "preadv", failing)
        with pytest.raises(DataError, match=r"train-\d{4}\.safetensors: can't be read: .*Input/output error"):
            batches.at(0, 0)


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "images of another shape": lambda told: told["images"].update(shape=[16, 3, 32, 31]),
    "images of another type": lambda told: told["images"].update(dtype="I8"),
    "images elsewhere": lambda told: told["images"].update(data_offsets=[0, 16 * 3072]),
    "no labels": lambda told: told.pop("labels"),
    "fewer labels": lambda told: told["labels"].update(shape=[15]),
    "labels before the file": lambda told: told["labels"].update(data_offsets=[-8, 120]),
    "ids beyond the images": lambda told: told["ids"].update(data_offsets=[10**9, 10**9 + 128]),
    "ids that are no table": lambda told: told.update(ids=3),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_a_header_that_is_none_of_a_shards_is_refused(damage: str, index: SetIndex) -> None:
    with closing(OpenShard(index, index.splits["train"][0])) as file:
        head = file.before_images()
        length = int.from_bytes(head[:8], "little")
        told = json.loads(head[8 : 8 + length])
        HEADERS[damage](told)
        changed = json.dumps(told, separators=(",", ":")).encode().ljust(length)[:length]
        with pytest.raises(DataError, match=r"train-0000\.safetensors: damaged: its header is not that of a shard"):
            file.labels_and_ids(head[:8] + changed + head[8 + length :])


def test_labels_of_no_class_are_refused_though_nobody_sums_the_file(index: SetIndex) -> None:
    with closing(OpenShard(index, index.splits["train"][0])) as file:
        head, known = file.before_images(), file.labels_and_ids(file.before_images())[0]
        wrong = head.replace(known.tobytes(), (known + 10).tobytes())
        with pytest.raises(DataError, match=r"damaged: labels from 1\d to 1\d, expected 0 to 9"):
            file.labels_and_ids(wrong)


@given(noise=st.binary(min_size=1, max_size=40), place=st.integers(0, 10_000))
def test_no_noise_in_a_header_is_more_than_an_error(noise: bytes, place: int, tiny_root: Path) -> None:
    index = read_index(tiny_root / "cifar10-shards16")
    with closing(OpenShard(index, index.splits["train"][0])) as file:
        head = bytearray(file.before_images())
        start = place % len(head)
        head[start : start + len(noise)] = noise[: len(head) - start]
        try:
            labels, ids = file.labels_and_ids(bytes(head))
        except DataError:
            return
        assert len(labels) == len(ids) == 16


def test_images_are_held_unless_they_would_take_more_than_half_of_the_memory() -> None:
    part = Part(samples=1000, image_bytes=3072, splits=2)
    enough = 2 * part.held_bytes
    asked = {name: DataConfig(images_in=name) for name in ("auto", "memory", "files")}
    assert [part.stays_in_files(asked["auto"], memory) for memory in (0, enough - 2, enough)] == [False, True, False]
    assert not part.stays_in_files(asked["memory"], 1)
    assert part.stays_in_files(asked["files"], 1 << 60)


def test_a_worker_whose_memory_is_small_reads_them(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(name="cifar10", root=str(tiny_root))
    index = read_index(set_folder(data))
    assert not images_stay_in_files(data, index, SoloComms(), CPU)
    monkeypatch.setattr(load_shards, "usable_memory", lambda: 1 << 20)
    assert images_stay_in_files(data, index, SoloComms(), CPU)


def test_a_worker_and_the_launcher_know_of_the_same_memory() -> None:
    assert usable_memory() == Resources.detect({}).memory
