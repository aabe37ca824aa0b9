"""Layouts of image folders: nesting, names of splits, Tiny ImageNet, junk files, links and Unicode names."""

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from torchvision.datasets import ImageFolder

from fmfsd.config import load_config
from fmfsd.data.image_files.layouts import ImageListing, list_images
from fmfsd.data.shards.index import SetIndex
from fmfsd.data.shards.verify import verify_sets
from fmfsd.errors import DataError
from fmfsd.report.write import write_report
from launcher.check.data_checks import check_dataset
from launcher.tune.space.validation_split import split_overrides
from tests.helpers.folders import prepare_folders, write_images, write_tiny_imagenet
from tests.helpers.processes import run_command
from tests.helpers.runs import make_run, read_records, train_run
from tests.helpers.workers import run_workers

SPLITS = ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")


def samples_by_split(index: SetIndex) -> dict[str, int]:
    return {split: index.num_samples(split) for split in index.splits}


def relative_paths(listing: ImageListing, split: str, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in listing.splits[split].paths]


def layout_error(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        list_images(root)
    return str(caught.value)


def test_images_at_any_depth_are_listed_as_by_torchvision(tmp_path: Path) -> None:
    deep = ("a/z.png", "a/images/b.JPEG", "a/images/a.jpg", "a/images.old/a.png", "a/x/y/z/1.png", "b/2.png")
    root = write_images(tmp_path, *(f"train/{name}" for name in deep), "val/a/3.png", "val/b/4.png")
    listing, reference = list_images(root), ImageFolder(str(root / "train"))
    assert listing.classes == tuple(reference.classes)
    train = listing.splits["train"]
    assert [(str(path), label) for path, label in zip(train.paths, train.labels, strict=True)] == reference.samples


def test_tiny_imagenet_is_prepared_in_its_original_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tiny ImageNet's test images have no labels, so val becomes the test split."""
    root = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    index = prepare_folders(tmp_path / "sets", root)
    assert index.classes == ("n01443537", "n01629819")
    assert samples_by_split(index) == {"train": 6, "test": 6}
    listing = list_images(root)
    assert relative_paths(listing, "test", root) == [f"val/images/val_{number}.JPEG" for number in (0, 2, 4, 1, 3, 5)]
    assert listing.splits["test"].labels == [0, 0, 0, 1, 1, 1]
    assert "test: ignored, as it has no class folders: its 4 images have no labels" in caplog.text


def test_annotations_that_do_not_fit_the_images_are_reported(tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path)
    (root / "val" / "images" / "val_1.JPEG").rename(root / "val" / "images" / "val_9.JPEG")
    message = layout_error(root)
    assert "val_annotations.txt: lists images that do not exist: val_1.JPEG" in message
    assert "val_annotations.txt: does not list all images: val_9.JPEG" in message


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "VAL"), ("TRAIN", "valid"), ("train", "Validation")])
def test_splits_are_recognised_by_any_of_their_names(names: tuple[str, str], tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", *(f"{split}/{name}/1.png" for split in names for name in "abcd"))
    assert samples_by_split(prepare_folders(tmp_path / "sets", root)) == {"train": 4, "test": 4}


def test_val_is_the_validation_split_if_there_is_a_test_split(tmp_path: Path) -> None:
    names = (
        f"{split}/{name}/{n}.png"
        for split, count in (("train", 5), ("val", 3), ("test", 2))
        for name in "ab"
        for n in range(count)
    )
    index = prepare_folders(tmp_path / "sets", write_images(tmp_path / "images", *names))
    assert samples_by_split(index) == {"train": 10, "valid": 6, "test": 4}
    assert (index.valid, index.folder.name) == (0, "folder-shards4")
    verify_sets(index.folder)
    with pytest.raises(DataError, match="--valid 2: the source has a validation split of 6 images"):
        prepare_folders(tmp_path / "others", tmp_path / "images", valid=2)


def test_a_sweep_uses_the_validation_split_of_the_folder(tmp_path: Path) -> None:
    splits = ("train", "val", "test")
    prepare_folders(
        tmp_path, write_images(tmp_path / "images", *(f"{s}/{c}/{n}.png" for s in splits for c in "ab" for n in s))
    )
    config = (
        "data.name=folder",
        "data.classes=2",
        "data.shards=4",
        "data.valid=0",
        "train.batch=4",
        "optim.milestones=[]",
    )
    assert split_overrides("smoke", config, data_root=str(tmp_path)) == (["train.evaluate_test=false"], 0)
    search_config = load_config("smoke", [*config, "train.evaluate_test=false"], data_root=str(tmp_path))
    assert list(check_dataset(search_config, checksums_bytes=0)) == []
    shutil.rmtree(tmp_path / "images" / "val")
    shutil.rmtree(tmp_path / "folder-shards4")
    prepare_folders(tmp_path, tmp_path / "images")
    (problem,) = check_dataset(search_config, checksums_bytes=0)
    assert str(problem).startswith(f"train.evaluate_test: false, and {tmp_path}/folder-shards4 has no validation split")


def test_two_folders_for_one_split_are_an_error(tmp_path: Path) -> None:
    root = write_images(tmp_path, *SPLITS, "valid/a/1.png", "Train/a/1.png")
    message = layout_error(root)
    assert "has val/ and valid/, which are folders of the same split" in message
    assert "has Train/ and train/, which are folders of the same split" in message


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("inside", ["", "images/"])
def test_a_split_without_class_folders_is_reported(split: str, inside: str, tmp_path: Path) -> None:
    root = write_images(tmp_path, *SPLITS)
    shutil.rmtree(root / split)
    write_images(root / split, *(f"{inside}{number}.png" for number in range(3)))
    assert layout_error(root).startswith(
        f"{root / split}: has no class folders, its 3 images have no labels; expected "
    )


def test_a_class_may_be_called_images(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train/images/1.png", "train/text/2.png", "val/images/3.png", "val/text/4.png")
    assert list_images(root).classes == ("images", "text")


def test_junk_files_are_skipped_with_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    junk = (
        "__MACOSX/a.png",
        "train/@eaDir/a.png",
        "train/a/.ipynb_checkpoints/1-checkpoint.png",
        "train/lost+found/b.png",
    )
    root = write_images(tmp_path, *SPLITS, *junk)
    for name in ("train/.DS_Store", "train/a/.DS_Store", "val/b/Thumbs.db"):
        (root / name).touch()
    listing = list_images(root)
    assert listing.classes == ("a", "b")
    assert relative_paths(listing, "train", root) == ["train/a/1.png", "train/b/2.png"]
    (line,) = caplog.messages
    assert "2 .DS_Store, 1 .ipynb_checkpoints, 1 @eaDir, 1 Thumbs.db, 1 __MACOSX, 1 lost+found" in line


def test_empty_class_folders_and_those_without_images_are_reported_differently(tmp_path: Path) -> None:
    root = write_images(tmp_path, *SPLITS)
    (root / "train" / "empty").mkdir()
    (root / "val" / "empty").mkdir()
    (root / "val" / "b" / "4.png").rename(root / "val" / "b" / "4.dat")
    message = layout_error(root)
    assert f"{root}/train/empty: an empty class folder: add images, or remove the folder from every split" in message
    assert f"{root}/val/b: a class folder without images: no file name in it ends in .png" in message
    assert "lacks the classes" not in message


def test_dangling_links_are_reported(tmp_path: Path) -> None:
    root = write_images(tmp_path, *SPLITS)
    (root / "train" / "c").symlink_to("/nowhere/c")
    message = layout_error(root)
    assert message.startswith(f"{root}/train/c: a dangling link: its target /nowhere/c does not exist")
    (root / "train" / "c").unlink()
    (root / "test").symlink_to("test-of-yesterday")
    assert f"{root}/test: a dangling link: its target test-of-yesterday does not exist" in layout_error(root)
    (root / "test").unlink()
    (root / "train" / "a" / "x.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"train/a/x\.png: a dangling link: its target gone\.png does not exist"):
        prepare_folders(tmp_path / "sets", root)


def test_links_are_followed_except_in_a_cycle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path, *SPLITS, "elsewhere/more/5.png")
    (root / "train" / "a" / "more").symlink_to(root / "elsewhere" / "more")
    (root / "elsewhere" / "more" / "back").symlink_to(root / "train" / "a")
    (root / "train" / "b" / "up").symlink_to(root / "train")
    assert relative_paths(list_images(root), "train", root) == ["train/a/1.png", "train/a/more/5.png", "train/b/2.png"]
    assert f"{root}/train/a/more/back: skipped, as it links to {root}/train/a, which contains it" in caplog.text
    assert f"{root}/train/b/up: skipped" in caplog.text


def test_an_unreadable_folder_is_an_error_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = write_images(tmp_path, *SPLITS), os.scandir

    def deny_one_folder(path: str) -> object:
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny_one_folder)
    assert f"{root}/train/b: can't be read: Permission denied" in layout_error(root)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_that_equals_the_training_split_is_an_error(split: str, tmp_path: Path) -> None:
    splits = ("train", "val", "test")
    root = write_images(
        tmp_path / "images", *(f"{name}/{each}/{n}.png" for name in splits for each in "ab" for n in name)
    )
    shutil.rmtree(root / split)
    (root / split).symlink_to("train")
    name = {"val": "validation"}.get(split, split)
    with pytest.raises(DataError, match=f"every {name} image is a training image too"):
        prepare_folders(tmp_path / "sets", root)


def test_class_names_are_compared_in_composed_unicode_form(tmp_path: Path) -> None:
    """macOS stores accents and Korean syllables in decomposed form, Linux stores names unchanged."""
    names = ("café", "한국")
    forms: dict[str, Literal["NFC", "NFD"]] = {"train": "NFC", "val": "NFD"}
    root = tmp_path / "images"
    for split, form in forms.items():
        write_images(root / split, *(f"{unicodedata.normalize(form, name)}/1.png" for name in names))
    assert len({path.name for path in root.glob("*/*")}) == 4
    index = prepare_folders(tmp_path / "sets", root, shards=2)
    assert index.classes == names


@pytest.mark.parametrize(
    "name",
    [
        "می\u200cخواهم",  # Persian: a zero-width non-joiner separates the parts of the verb
        "क\u094d\u200dष",  # Hindi: a zero-width joiner selects the half form
        "👩\u200d🔬",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "日本\u3000語",
        "\U0001fadc\U0001fae9",  # newer than the Unicode tables of Python 3.11
        "x" * 200,
    ],
)
def test_class_names_may_be_in_any_script(name: str, tmp_path: Path) -> None:
    names = (f"{split}/{each}/{n}.png" for n, split in enumerate(("train", "val")) for each in ("a", name))
    index = prepare_folders(tmp_path / "sets", write_images(tmp_path / "images", *names), shards=2)
    assert set(index.classes) == {"a", name}


@pytest.mark.usefixtures("processes")
def test_three_splits_and_any_names_work_in_training_evaluation_and_the_report(tmp_path: Path) -> None:
    names = ("x" * 200, "می\u200cخواهم")
    splits = {"train": 4, "val": 3, "test": 2}
    images = (f"{split}/{name}/{n}.png" for split, count in splits.items() for name in names for n in range(count))
    prepare_folders(tmp_path, write_images(tmp_path / "images", *images))
    small = ("data.name=folder", "data.classes=2", "data.shards=4", "train.batch=4", "train.epochs=1")
    config = load_config("smoke", [*small, "optim.milestones=[]"], data_root=str(tmp_path))
    run = make_run(tmp_path / "run", config)
    assert run_workers(train_run, 1, run.path) == ["finished"]
    assert [record["split"] for record in read_records(run)][-2:] == ["valid", "test"]
    page = write_report([run.path], None).read_text()
    assert all(name in page for name in names)
    completed = run_command("fmfsd", "evaluate", str(run.path), "--split", "valid", "--no-early-exits", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert "deepest" in completed.stdout


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "\u202egnp", "a\u2028b", "caf\udce9", "\x85"])
def test_class_names_with_control_characters_are_errors(name: str, tmp_path: Path) -> None:
    root = write_images(tmp_path, *SPLITS, f"train/{name}/1.png", f"val/{name}/1.png")
    assert f"{name!a} is not a valid class name" in layout_error(root)
