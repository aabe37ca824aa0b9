"""Image folders: what is read of them, what is wrong with them, and training on them."""

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
from fmfsd.cost.measure.probe import probe
from fmfsd.data.augment.crop_flip import Normalise
from fmfsd.data.image_files.decode import decoded
from fmfsd.data.loading.batches import EvaluationBatches, TrainBatches
from fmfsd.data.loading.shards_in_memory import load_own_shards
from fmfsd.data.shards.index import read_index
from fmfsd.data.shards.verify import verify_sets
from fmfsd.errors import ConfigError, DataError
from tests.helpers.folders import CLASSES, prepare_folders, write_folders
from tests.helpers.processes import run_command
from tests.helpers.runs import assert_records_agree, make_run, records, train_run
from tests.helpers.workers import run_workers


def config(root: Path, *changes: str) -> RunConfig:
    small = ("train.batch=4", "train.epochs=1", "optim.milestones=[]", "train.log_every=1 step", "data.valid=0")
    fixed = ("data.name=folder", "data.classes=4", "data.shards=4", *small)
    return load_config("smoke", [*fixed, *changes], data_root=str(root))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=3)


def test_classes_are_sorted_and_every_image_is_there_once(source: Path, tmp_path: Path) -> None:
    index = prepare_folders(tmp_path, source)
    assert (index.classes, index.shape) == (CLASSES, (3, 32, 32))
    assert (index.samples("train"), index.samples("test")) == (12, 16)
    verify_sets(tmp_path)
    files = sorted(path for path in (source / "train").rglob("*.*"))
    for shard in index.splits["train"]:
        content = load_file(index.path(shard))
        for image, label, number in zip(content["images"], content["labels"], content["ids"], strict=True):
            assert files[number].parent.name == CLASSES[label]
            assert np.array_equal(image, np.asarray(Image.open(files[number])).transpose(2, 0, 1))


def test_the_middle_of_an_image_is_taken_in_colours(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300), np.uint8)
    pixels[:, 100:200] = 200
    Image.fromarray(pixels, "L").save(tmp_path / "wide.png")
    found = decoded(tmp_path / "wide.png", 64)
    assert found.shape == (3, 64, 64)
    assert (found[:, :, 2:-2] == 200).all()
    Image.new("RGBA", (40, 90), (10, 20, 30, 0)).save(tmp_path / "tall.png")
    assert decoded(tmp_path / "tall.png", 64).mean((1, 2)).tolist() == [10, 20, 30]


def test_sets_of_other_sizes_lie_beside_one_another_with_room_for_parts(source: Path, tmp_path: Path) -> None:
    found = {size: prepare_folders(tmp_path, source, size=size) for size in (32, 64, 224)}
    assert {size: (index.folder.name, index.shape[1]) for size, index in found.items()} == {
        32: ("folder-shards4", 32),
        64: ("folder-size64-shards4", 64),
        224: ("folder-size224-shards4", 256),
    }
    assert prepare_folders(tmp_path, None, size=224) == found[224]


def test_held_out_images_are_the_same_number_of_each_class(tmp_path: Path) -> None:
    index = prepare_folders(tmp_path / "root", write_folders(tmp_path / "images", train=4), valid=8)
    assert [index.samples(split) for split in ("train", "valid", "test")] == [8, 8, 16]
    labels = np.concatenate([load_file(index.path(shard))["labels"] for shard in index.splits["valid"]])
    assert np.bincount(labels).tolist() == [2] * 4


def without(*names: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for name in names:
            shutil.rmtree(root / name)

    return remove


def emptied(*names: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for path in (path for name in names for path in (root / name).iterdir()):
            path.unlink()

    return remove


def with_other_classes(root: Path) -> None:
    (root / "val" / "ant").rename(root / "val" / "eel")
    shutil.rmtree(root / "train" / "dog")


def with_many_that_are_no_images(root: Path) -> None:
    for number in range(52):
        (root / "train" / "ant" / f"bad{number:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")


def with_one_cut_short(root: Path) -> None:
    path = next((root / "val" / "cat").glob("*.png"))
    path.write_bytes(path.read_bytes()[:-500])


WRONG: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no train": (without("train"), ["has no train/; expected train/CLASS"]),
    "no splits": (without("train", "val"), ["has no train/", "has no test/, val/, valid/ or validation/"]),
    "empty test": (lambda root: (root / "test").mkdir(), ["test: has no class folders, and no images; expected"]),
    "other classes": (with_other_classes, ["val: lacks the classes ant", "train: lacks the classes dog, eel"]),
    "empty classes": (
        emptied("train/bee", "val/cat"),
        ["train/bee: an empty class folder", "val/cat: an empty class folder"],
    ),
    "no classes": (without(*(f"train/{name}" for name in CLASSES)), ["train: has no class folders"]),
    "damaged": (
        with_many_that_are_no_images,
        [r"ant/bad00\.png: can't be decoded", r"ant/bad49\.png", "and 2 more"],
    ),
    "cut short": (with_one_cut_short, [r"cat/.*\.png: can't be decoded"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_everything_that_is_wrong_with_folders_is_told_and_nothing_is_left(
    case: str, source: Path, tmp_path: Path
) -> None:
    change, expected = WRONG[case]
    root = tmp_path / "images"
    shutil.copytree(source, root)
    change(root)
    with pytest.raises(DataError) as caught:
        prepare_folders(tmp_path / "root", root)
    for text in expected:
        caught.match(text)
    assert [path for path in (tmp_path / "root").iterdir() if not path.name.endswith(".lock")] == []


def test_other_files_are_left_out_and_told_of(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "images"
    shutil.copytree(source, root)
    for name in ("notes.txt", ".hidden.png", "more.heic"):
        (root / "train" / "bee" / name).touch()
    assert prepare_folders(tmp_path / "root", root).samples("train") == 12
    assert "skipped files outside of class folders or without one of the extensions .png" in caplog.text
    assert caplog.text.rstrip().endswith(": 2")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (("data.classes=null",), r"data\.classes: how many classes .* must be said"),
        (("data.name=cifar10", "data.classes=4"), r"data\.classes: cifar10 has 10, found 4: leave it out"),
        (("data.name=cifar10", "data.classes=10", "data.size=64"), r"data\.size: the images of cifar10 have 32"),
        (("data.valid=6",), r"data\.valid: 6 is not the same for each of 4 classes; nearest: 4 or 8"),
    ],
)
def test_what_a_folder_set_needs_in_a_config_is_told(changes: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        config(tmp_path, *changes)


@pytest.mark.usefixtures("processes")
def test_the_command_prepares_folders_and_says_what_it_needs(source: Path, tmp_path: Path) -> None:
    command = ("data", "prepare", "folder", "--out", str(tmp_path), "--size", "64", "--shards", "4")
    lacking = run_command("fmfsd", *command, cwd=tmp_path)
    assert (lacking.returncode, "--source: is required for image folders" in lacking.stderr) == (2, True)
    made = run_command("fmfsd", *command, "--source", str(source), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "12 train, 16 test samples of 4 classes in 4 shards" in made.stdout
    assert read_index(tmp_path / "folder-size64-shards4").shape == (3, 64, 64)


def test_large_images_are_seen_whole_in_parts_and_in_the_centre(source: Path, tmp_path: Path) -> None:
    data = DataConfig(name="folder", root=str(tmp_path), shards=4, size=224, classes=4, crop_padding=0, flip=False)
    index = prepare_folders(tmp_path, source, size=224)
    shards = load_own_shards(index, "test", rank=0, world_size=1)
    centre = shards.images[..., 16:240, 16:240]
    normalise = Normalise(*data.channel_statistics, torch.float32, torch.device("cpu"))
    for given, whole in ((data, True), (data.model_copy(update={"resized_crop": True}), False)):
        batches = TrainBatches(shards, given, seed=0, per_shard=4, dtype=torch.float32)
        images, _ = batches.at(0, 0)
        assert images.shape == (16, 3, 224, 224)
        expected = Normalise(*data.channel_statistics, torch.float32, torch.device("cpu"))(
            centre[batches.table(0).sample[0]]
        )
        assert torch.equal(images, expected) == whole
    shown, _ = EvaluationBatches(shards, data, batch=16, largest_part=16, dtype=torch.float32).at(0)
    assert torch.equal(shown, normalise(centre))


@pytest.mark.usefixtures("processes")
def test_workers_train_on_folders_like_one(source: Path, tmp_path: Path) -> None:
    prepare_folders(tmp_path, source)
    found = []
    for size in (1, 2):
        run = make_run(tmp_path / f"w{size}", config(tmp_path, "train.precision=fp64"))
        assert run_workers(train_run, size, run.path) == ["finished"] * size
        found.append(records(run))
    assert [line["step"] for line in found[0]] == [1, 2, 3, 3]
    assert_records_agree(*found, tolerance=1e-9)


@pytest.mark.usefixtures("processes")
def test_a_network_for_224_pixels_trains(source: Path, tmp_path: Path) -> None:
    prepare_folders(tmp_path, source, size=224)
    large = ("data.size=224", "data.resized_crop=true", "data.crop_padding=0", "train.max_steps=2")
    wanted = config(tmp_path, *large, "train.evaluate_batch=8")
    assert probe(wanted, workers=2).memory.data == 0
    run = make_run(tmp_path / "run", wanted)
    assert run_workers(train_run, 2, run.path) == ["finished"] * 2
    assert [line["split"] for line in records(run)] == ["train", "train", "test"]


def test_a_worker_refuses_another_number_of_classes(source: Path, tmp_path: Path) -> None:
    from fmfsd.distributed.collectives import SoloComms
    from tests.helpers.runs import make_loop

    prepare_folders(tmp_path, source)
    run = make_run(tmp_path / "run", config(tmp_path, "data.classes=5"))
    with pytest.raises(ConfigError, match=r"folder-shards4 has 4 classes, data\.classes is 5"):
        make_loop(run, SoloComms())


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert decoded(tmp_path / "turned.png", 32)[0, 0].tolist() == [0] * 16 + [255] * 16


def test_an_endless_strip_costs_no_more_than_its_middle(tmp_path: Path) -> None:
    Image.new("RGB", (1, 100_000), "red").save(tmp_path / "strip.png")
    assert decoded(tmp_path / "strip.png", 256).shape == (3, 256, 256)


def test_what_is_no_file_is_left_out(source: Path, tmp_path: Path) -> None:
    """A pipe would be read for ever."""
    copied = shutil.copytree(source, tmp_path / "images")
    os.mkfifo(copied / "train" / CLASSES[0] / "pipe.png")
    assert prepare_folders(tmp_path / "sets", copied).samples("train") == 12


def test_a_name_that_no_terminal_should_see_is_no_class(source: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(source, tmp_path / "images")
    for part in copied.iterdir():
        (part / CLASSES[0]).rename(part / "a\x1b[31m")
    with pytest.raises(DataError) as caught:
        prepare_folders(tmp_path / "sets", copied)
    assert r"'a\x1b[31m' is not a valid class name" in str(caught.value)
