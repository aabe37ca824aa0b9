"""Augmentation of batches: independent of the number of workers and of the position, and each part is correct."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fmfsd.config import DataConfig
from fmfsd.config.load import load_config
from fmfsd.data.augment.resized_crop import MAX_TRIES, VALUES_PER_SAMPLE, draw_crop_boxes, resized_crop
from fmfsd.data.loading.batches import TrainBatches
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.shards.index import read_index
from fmfsd.errors import ConfigError
from tests.helpers.runs import assert_records_agree, make_run, newest_weights, read_records, tiny_config, train_run
from tests.helpers.workers import run_workers

RECIPES: dict[str, dict[str, Any]] = {
    "autoaugment": {"autoaugment": True, "cutout": 16},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "resized_crop": {"resized_crop": True, "crop_padding": 0},
}
RECIPES["all"] = {name: value for recipe in RECIPES.values() for name, value in recipe.items()}
ALL = ("data.autoaugment=true", "data.cutout=8", "data.mixup=0.2", "data.cutmix=1", "data.resized_crop=true")


def batches(root: Path, rank: int, world_size: int, *, per_shard: int = 2, recipe: str = "all") -> TrainBatches:
    data = DataConfig(name="cifar10", **RECIPES[recipe])
    shards = load_worker_shards(read_index(root / "cifar10-shards16"), "train", rank=rank, world_size=world_size)
    return TrainBatches(shards, data, seed=5, per_shard=per_shard, dtype=torch.float32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_bit_for_bit_the_same_for_any_number_of_workers(recipe: str, tiny_root: Path) -> None:
    alone = batches(tiny_root, 0, 1, recipe=recipe)
    for world_size in (2, 4, 16):
        workers = [batches(tiny_root, rank, world_size, recipe=recipe) for rank in range(world_size)]
        for position in ((0, 0), (3, 7)):
            pieces_by_worker = [worker.load_batch(*position) for worker in workers]
            for whole, pieces in zip(alone.load_batch(*position), zip(*pieces_by_worker, strict=True), strict=True):
                assert torch.equal(torch.cat(pieces), whole)


def test_a_sample_is_the_same_in_a_micro_batch_of_another_size(tiny_root: Path) -> None:
    whole, half = (batches(tiny_root, 0, 1, per_shard=per_shard) for per_shard in (2, 1))
    images, labels = whole.load_batch(1, 3)
    halves = [half.load_batch(1, step) for step in (6, 7)]
    by_id = {
        int(number): (image, label)
        for step, (image_b, label_b) in zip((6, 7), halves, strict=True)
        for number, image, label in zip(half.ids(1, step), image_b, label_b, strict=True)
    }
    for number, image, label in zip(whole.ids(1, 3), images, labels, strict=True):
        assert torch.equal(by_id[int(number)][0], image)
        assert torch.equal(by_id[int(number)][1], label)


def test_a_position_gives_the_same_batch_after_a_resume(tiny_root: Path) -> None:
    sequential, direct = batches(tiny_root, 0, 2), batches(tiny_root, 0, 2)
    for position in ((0, 0), (0, 1), (1, 0), (1, 1)):
        images, labels = sequential.load_batch(*position)
    direct_batch = direct.load_batch(1, 1)
    assert torch.equal(direct_batch[0], images)
    assert torch.equal(direct_batch[1], labels)


def test_no_augmentation_changes_the_random_draws_of_the_others(tiny_root: Path) -> None:
    tables = [batches(tiny_root, 0, 1, recipe=recipe).epoch_table(2) for recipe in ("autoaugment", "mixup", "all")]
    for name in ("mirrored", "row", "column"):
        assert all(torch.equal(table.draws[name], tables[0].draws[name]) for table in tables)
    assert torch.equal(tables[0].schedules[0].operations, tables[2].schedules[0].operations)
    assert torch.equal(tables[1].sample, tables[2].sample)
    assert tables[1].partners is not None
    assert tables[2].partners is not None
    assert torch.equal(tables[1].partners.sample, tables[2].partners.sample)


def test_a_mixed_batch_mixes_augmented_samples_of_one_shard(tiny_root: Path) -> None:
    """A partner is augmented as in its own place in the epoch."""
    mixed = batches(tiny_root, 0, 1, recipe="mixup", per_shard=16)
    table, plain = mixed.epoch_table(0), batches(tiny_root, 0, 1, recipe="mixup", per_shard=16)
    plain._cached_table = 0, replace(table, partners=None)
    images, labels = plain.load_batch(0, 0)
    by_sample = {int(sample): index for index, sample in enumerate(table.sample[0])}
    assert table.partners is not None
    partners = torch.tensor([by_sample[int(sample)] for sample in table.partners.sample[0]])
    assert torch.equal(partners // 16, torch.arange(256) // 16)
    share = table.draws["share"][0].float()
    weight = share.view(-1, 1, 1, 1)
    mixed_images, mixed_labels = mixed.load_batch(0, 0)
    torch.testing.assert_close(mixed_images, weight * images + (1 - weight) * images[partners])
    expected = share[:, None] * F.one_hot(labels, 10) + (1 - share[:, None]) * F.one_hot(labels[partners], 10)
    torch.testing.assert_close(mixed_labels, expected)


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (256, 224), (64, 32)])
def test_a_crop_is_resized_as_by_torch(stored: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, stored, stored), dtype=torch.uint8, generator=generator)
    random_words = (
        np.random.Philox(key=np.array([1, 1], np.uint64))
        .random_raw(12 * VALUES_PER_SAMPLE)
        .reshape(12, VALUES_PER_SAMPLE)
    )
    boxes = {name: torch.from_numpy(values) for name, values in draw_crop_boxes(random_words, stored).items()}
    boxes["part_width"][0] = boxes["part_height"][0] = stored
    boxes["part_left"][0] = boxes["part_top"][0] = 0
    resized = resized_crop(images, *boxes.values(), size=size)
    for number, image in enumerate(images):
        top, left, height, width = (int(values[number]) for values in boxes.values())
        crop = image[None, :, top : top + height, left : left + width].float()
        expected = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        assert (resized[number] - expected[0]).abs().max() < 0.501


def test_a_crop_is_the_first_of_ten_tries_that_fits() -> None:
    """This is torchvision's rule, checked sample by sample; some of 30,000 samples have no fit and are not cropped."""
    random_words = (
        np.random.Philox(key=np.array([9, 9], np.uint64))
        .random_raw(30_000 * VALUES_PER_SAMPLE)
        .reshape(-1, VALUES_PER_SAMPLE)
    )
    draws = draw_crop_boxes(random_words, 32)
    for row in range(0, 30_000, 37):
        expected = (32, 32)
        for word in random_words[row, :MAX_TRIES].tolist():
            area = 32**2 * (0.08 + 0.92 * (word & 0xFFFFFFFF) / 2**32)
            ratio = np.exp(np.log(3 / 4) + (word >> 32) / 2**32 * (np.log(4 / 3) - np.log(3 / 4)))
            width, height = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
            if width <= 32 and height <= 32:
                expected = (height, width)
                break
        assert (draws["part_height"][row], draws["part_width"][row]) == expected
    for start, length in (("part_top", "part_height"), ("part_left", "part_width")):
        ends = draws[start] + draws[length]
        assert (draws[start].min(), ends.max()) == (0, 32)
    areas = draws["part_height"] * draws["part_width"] / 32**2
    assert (areas.min(), areas.max()) == (pytest.approx(0.08, abs=0.01), 1.0)


@pytest.mark.usefixtures("processes")
def test_all_augmentations_train_the_same_on_two_workers_and_after_a_resume_within_an_epoch(
    tiny_root: Path, tmp_path: Path
) -> None:
    small = ("data.shards=16", "train.batch=16", "train.max_steps=3", "train.precision=fp64", "data.crop_padding=0")
    config = tiny_config(tiny_root, *small, *ALL)
    alone, two, parted = (make_run(tmp_path / name, config) for name in ("alone", "two", "parted"))
    run_workers(train_run, 1, alone.path)
    run_workers(train_run, 2, two.path)
    assert_records_agree(read_records(two), read_records(alone), tolerance=1e-9)
    assert run_workers(train_run, 2, parted.path, 2) == ["stopped"] * 2
    run_workers(train_run, 2, parted.path)
    assert read_records(parted) == read_records(two)
    assert newest_weights(parted) == newest_weights(two)


def test_a_resized_crop_and_a_padded_crop_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"data\.resized_crop: replaces .* found data\.crop_padding 4: set that"):
        load_config("smoke", ["data.resized_crop=true"])
    load_config("smoke", ["data.resized_crop=true", "data.crop_padding=0"])
