"""Image folders: decoding, errors, and training on them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from fmfsd.config import DataConfig, RunConfig, load_config
from fmfsd.cost.measure.estimate import estimate_cost
from fmfsd.data.augment.crop_flip_cutout import Normalise
from fmfsd.data.image_files.decode import decode_image
from fmfsd.data.loading.batches import EvaluationBatches, TrainBatches
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.shards.index import read_index
from fmfsd.data.shards.verify import verify_sets
from fmfsd.errors import ConfigError, DataError
from tests.helpers.folders import CLASSES, prepare_folders, write_folders
from tests.helpers.processes import run_command
from tests.helpers.runs import assert_records_agree, make_run, read_records, train_run
from tests.helpers.workers import run_workers


def config(root: Path, *changes: str) -> RunConfig:
    small = ("train.batch=4", "train.epochs=1", "optim.milestones=[]", "train.log_every=1 step", "data.valid=0")
    fixed = ("data.name=folder", "data.classes=4", "data.shards=4", *small)
    return load_config("smoke", [*fixed, *changes], data_root=str(root))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=3)


def test_classes_are_sorted_and_every_image_is_stored_once(source: Path, tmp_path: Path) -> None:
    index = prepare_folders(tmp_path, source)
    assert (index.classes, index.shape) == (CLASSES, (3, 32, 32))
    assert (index.num_samples("train"), index.num_samples("test")) == (12, 16)
    verify_sets(tmp_path)
    files = sorted(path for path in (source / "train").rglob("*.*"))
    for shard in index.splits["train"]:
        content = load_file(index.path(shard))
        for image, label, number in zip(content["images"], content["labels"], content["ids"], strict=True):
            assert files[number].parent.name == CLASSES[label]
            assert np.array_equal(image, np.asarray(Image.open(files[number])).transpose(2, 0, 1))


def test_images_are_cropped_to_the_centre_and_converted_to_rgb(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300), np.uint8)
    pixels[:, 100:200] = 200
    Image.fromarray(pixels, "L").save(tmp_path / "wide.png")
    image = decode_image(tmp_path / "wide.png", 64)
    assert image.shape == (3, 64, 64)
    assert (image[:, :, 2:-2] == 200).all()
    Image.new("RGBA", (40, 90), (10, 20, 30, 0)).save(tmp_path / "tall.png")
    assert decode_image(tmp_path / "tall.png", 64).mean((1, 2)).tolist() == [10, 20, 30]


def test_sets_of_different_image_sizes_coexist_with_a_margin_for_crops(source: Path, tmp_path: Path) -> None:
    sets = {size: prepare_folders(tmp_path, source, size=size) for size in (32, 64, 224)}
    assert {size: (index.folder.name, index.shape[1]) for size, index in sets.items()} == {
        32: ("folder-shards4", 32),
        64: ("folder-size64-shards4", 64),
        224: ("folder-size224-shards4", 256),
    }
    assert prepare_folders(tmp_path, None, size=224) == sets[224]


def test_held_out_images_are_the_same_number_of_each_class(tmp_path: Path) -> None:
    index = prepare_folders(tmp_path / "root", write_folders(tmp_path / "images", train=4), valid=8)
    assert [index.num_samples(split) for split in ("train", "valid", "test")] == [8, 8, 16]
    labels = np.concatenate([load_file(index.path(shard))["labels"] for shard in index.splits["valid"]])
    assert np.bincount(labels).tolist() == [2] * 4


def remove_folders(*names: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for name in names:
            shutil.rmtree(root / name)

    return remove


def empty_folders(*names: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for path in (path for name in names for path in (root / name).iterdir()):
            path.unlink()

    return remove


def change_classes(root: Path) -> None:
    (root / "val" / "ant").rename(root / "val" / "eel")
    shutil.rmtree(root / "train" / "dog")


def add_many_damaged_images(root: Path) -> None:
    for number in range(52):
        (root / "train" / "ant" / f"bad{number:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")


def truncate_one_image(root: Path) -> None:
    path = next((root / "val" / "cat").glob("*.png"))
    path.write_bytes(path.read_bytes()[:-500])


BROKEN_SOURCES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no train": (remove_folders("train"), ["has no train/; expected train/CLASS"]),
    "no splits": (remove_folders("train", "val"), ["has no train/", "has no test/, val/, valid/ or validation/"]),
    "empty test": (lambda root: (root / "test").mkdir(), ["test: has no class folders, and no images; expected"]),
    "other classes": (change_classes, ["val: lacks the classes ant", "train: lacks the classes dog, eel"]),
    "empty classes": (
        empty_folders("train/bee", "val/cat"),
        ["train/bee: an empty class folder", "val/cat: an empty class folder"],
    ),
    "no classes": (remove_folders(*(f"train/{name}" for name in CLASSES)), ["train: has no class folders"]),
    "damaged": (
        add_many_damaged_images,
        [r"ant/bad00\.png: can't be decoded", r"ant/bad49\.png", "and 2 more"],
    ),
    "cut short": (truncate_one_image, [r"cat/.*\.png: can't be decoded"]),
}


@pytest.mark.parametrize("case", BROKEN_SOURCES)
def test_all_problems_of_image_folders_are_reported_and_no_set_is_left(case: str, source: Path, tmp_path: Path) -> None:
    change, expected = BROKEN_SOURCES[case]
    root = tmp_path / "images"
    shutil.copytree(source, root)
    change(root)
    with pytest.raises(DataError) as caught:
        prepare_folders(tmp_path / "root", root)
    for text in expected:
        caught.match(text)
    assert [path for path in (tmp_path / "root").iterdir() if not path.name.endswith(".lock")] == []


def test_other_files_are_skipped_and_logged(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "images"
    shutil.copytree(source, root)
    for name in ("notes.txt", ".hidden.png", "more.heic"):
        (root / "train" / "bee" / name).touch()
    assert prepare_folders(tmp_path / "root", root).num_samples("train") == 12
    assert "skipped files outside of class folders or without one of the extensions .png" in caplog.text
    assert caplog.text.rstrip().endswith(": 2")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (("data.classes=null",), r"data\.classes: required for an image folder and not set"),
        (("data.name=cifar10", "data.classes=4"), r"data\.classes: cifar10 has 10, found 4: leave it out"),
        (
            ("data.name=cifar10", "data.classes=10", "data.size=64"),
            r"data\.size: expected 32, the image side of cifar10",
        ),
        (("data.valid=6",), r"data\.valid: 6 is not divisible by the number of classes, 4; nearest: 4 or 8"),
    ],
)
def test_a_config_for_image_folders_is_checked(changes: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        config(tmp_path, *changes)


@pytest.mark.usefixtures("processes")
def test_the_command_prepares_folders_and_requires_a_source(source: Path, tmp_path: Path) -> None:
    command = ("data", "prepare", "folder", "--out", str(tmp_path), "--size", "64", "--shards", "4")
    without_source = run_command("fmfsd", *command, cwd=tmp_path)
    assert (without_source.returncode, "--source: is required for image folders" in without_source.stderr) == (2, True)
    completed = run_command("fmfsd", *command, "--source", str(source), cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert "12 train, 16 test samples of 4 classes in 4 shards" in completed.stdout
    assert read_index(tmp_path / "folder-size64-shards4").shape == (3, 64, 64)


def test_training_uses_the_centre_or_random_crops_of_large_images_and_evaluation_the_centre(
    source: Path, tmp_path: Path
) -> None:
    data = DataConfig(name="folder", root=str(tmp_path), shards=4, size=224, classes=4, crop_padding=0, flip=False)
    index = prepare_folders(tmp_path, source, size=224)
    shards = load_worker_shards(index, "test", rank=0, world_size=1)
    centre = shards.images[..., 16:240, 16:240]
    normalise = Normalise(*data.channel_statistics, torch.float32, torch.device("cpu"))
    for data_config, is_centre in ((data, True), (data.model_copy(update={"resized_crop": True}), False)):
        batches = TrainBatches(shards, data_config, seed=0, per_shard=4, dtype=torch.float32)
        images, _ = batches.load_batch(0, 0)
        assert images.shape == (16, 3, 224, 224)
        expected = Normalise(*data.channel_statistics, torch.float32, torch.device("cpu"))(
            centre[batches.epoch_table(0).sample[0]]
        )
        assert torch.equal(images, expected) == is_centre
    evaluated, _ = EvaluationBatches(shards, data, batch=16, largest_part=16, dtype=torch.float32).load_batch(0)
    assert torch.equal(evaluated, normalise(centre))


@pytest.mark.usefixtures("processes")
def test_two_workers_train_on_image_folders_like_one(source: Path, tmp_path: Path) -> None:
    prepare_folders(tmp_path, source)
    results = []
    for size in (1, 2):
        run = make_run(tmp_path / f"w{size}", config(tmp_path, "train.precision=fp64"))
        assert run_workers(train_run, size, run.path) == ["finished"] * size
        results.append(read_records(run))
    assert [line["step"] for line in results[0]] == [1, 2, 3, 3]
    assert_records_agree(*results, tolerance=1e-9)


@pytest.mark.usefixtures("processes")
def test_a_network_for_224_pixels_trains(source: Path, tmp_path: Path) -> None:
    prepare_folders(tmp_path, source, size=224)
    large = ("data.size=224", "data.resized_crop=true", "data.crop_padding=0", "train.max_steps=2")
    run_config = config(tmp_path, *large, "train.evaluate_batch=8")
    assert estimate_cost(run_config, workers=2).memory.data == 0
    run = make_run(tmp_path / "run", run_config)
    assert run_workers(train_run, 2, run.path) == ["finished"] * 2
    assert [line["split"] for line in read_records(run)] == ["train", "train", "test"]


def test_another_number_of_classes_is_an_error(source: Path, tmp_path: Path) -> None:
    from fmfsd.distributed.collectives import SingleWorkerComms
    from tests.helpers.runs import make_loop

    prepare_folders(tmp_path, source)
    run = make_run(tmp_path / "run", config(tmp_path, "data.classes=5"))
    with pytest.raises(ConfigError, match=r"folder-shards4 has 4 classes, data\.classes is 5"):
        make_loop(run, SingleWorkerComms())


def test_images_are_rotated_by_their_exif_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "rotated.png", exif=exif)
    assert decode_image(tmp_path / "rotated.png", 32)[0, 0].tolist() == [0] * 16 + [255] * 16


def test_of_a_very_long_image_only_the_centre_is_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (1, 100_000), "red").save(tmp_path / "strip.png")
    assert decode_image(tmp_path / "strip.png", 256).shape == (3, 256, 256)


def test_pipes_are_skipped(source: Path, tmp_path: Path) -> None:
    """Reading a pipe would block."""
    copy = shutil.copytree(source, tmp_path / "images")
    os.mkfifo(copy / "train" / CLASSES[0] / "pipe.png")
    assert prepare_folders(tmp_path / "sets", copy).num_samples("train") == 12


def test_a_class_name_with_escape_characters_is_an_error(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "images")
    for part in copy.iterdir():
        (part / CLASSES[0]).rename(part / "a\x1b[31m")
    with pytest.raises(DataError) as caught:
        prepare_folders(tmp_path / "sets", copy)
    assert r"'a\x1b[31m' is not a valid class name" in str(caught.value)
