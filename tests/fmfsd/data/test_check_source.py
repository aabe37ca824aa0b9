"""A set is not taken for one of its source when the source has changed since it was prepared."""

import os
import shutil
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest
from PIL import Image

from fmfsd.config.load import checked_data
from fmfsd.data.image_files.source_files import RECORD, FileState
from fmfsd.data.prepare import prepare
from fmfsd.errors import DataError
from tests.helpers.folders import prepare_folders, write_folders, write_image
from tests.helpers.official import write_official


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "images", train=3)


def change_in_place(path: Path) -> None:
    """Change an image under the same name and size."""
    colour, before = (200, 10, 10), path.stat()
    Image.new("RGB", (32, 32), colour).save(path, format="BMP")
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def bitmap(source: Path) -> Path:
    """A file whose size does not depend on its pixels."""
    path = source / "train" / "ant" / "x.bmp"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    return path


def test_an_image_that_changed_under_the_same_name_and_size_is_noticed(source: Path, tmp_path: Path) -> None:
    path = bitmap(source)
    made = prepare_folders(tmp_path, source)
    assert prepare_folders(tmp_path, source) == made
    change_in_place(path)
    with pytest.raises(DataError, match=r"was prepared from other files: 1 changed \(train/ant/x\.bmp\); choose anoth"):
        prepare_folders(tmp_path, source)
    shutil.rmtree(made.folder)
    assert prepare_folders(tmp_path, source).sources != made.sources


def test_the_content_decides_where_only_the_time_differs(source: Path, tmp_path: Path) -> None:
    made = prepare_folders(tmp_path, source)
    for path in source.rglob("*.*"):
        os.utime(path)
    assert prepare_folders(tmp_path, source) == made


def test_content_is_read_only_where_the_time_differs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, touched = prepare_folders(tmp_path, source), source / "val" / "cat" / "0002.png"
    os.utime(touched)
    read, original = list[str](), FileState.read

    def noted(file: BufferedReader) -> FileState:
        read.append(file.name)
        return original(file)

    monkeypatch.setattr(FileState, "read", noted)
    assert prepare_folders(tmp_path, source) == made
    assert read == [str(touched)]


def removed(path: Path) -> None:
    path.unlink()


def added(path: Path) -> None:
    write_image(path.with_name("new.png"))


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def replaced_by_a_page(path: Path) -> None:
    path.write_bytes(b"<html>")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (removed, r"1 removed \(val/cat/0002\.png\)"),
        (added, r"1 added \(val/cat/new\.png\)"),
        (grown, r"1 changed \(val/cat/0002\.png\)"),
        (replaced_by_a_page, r"1 changed \(val/cat/0002\.png\)"),
    ],
)
def test_other_changes_are_told_apart(change: Callable[[Path], None], told: str, source: Path, tmp_path: Path) -> None:
    prepare_folders(tmp_path, source)
    change(source / "val" / "cat" / "0002.png")
    with pytest.raises(DataError, match=f"was prepared from other files: {told}"):
        prepare_folders(tmp_path, source)


def test_skipped_files_are_no_change_until_they_are_mended(source: Path, tmp_path: Path) -> None:
    empty, short = (source / "train" / "ant" / name for name in ("empty.png", "short.png"))
    empty.touch()
    whole = write_image(short, side=64).read_bytes()
    short.write_bytes(whole[:-5000])
    made = prepare_folders(tmp_path, source, skip_damaged=True)
    assert (made.skipped, prepare_folders(tmp_path, source)) == (2, made)
    shutil.copy(source / "train" / "ant" / "0000.png", empty)
    short.write_bytes(whole)
    with pytest.raises(DataError, match=r"1 changed \(train/ant/short\.png\), 1 added \(train/ant/empty\.png\)"):
        prepare_folders(tmp_path, source)


def test_the_same_images_elsewhere_give_the_same_index(source: Path, tmp_path: Path) -> None:
    made = prepare_folders(tmp_path / "a", source)
    other = prepare_folders(tmp_path / "b", shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile))
    assert (made.folder / "index.json").read_bytes() == (other.folder / "index.json").read_bytes()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "images.json: missing, so changes of the images can't be detected"),
        (lambda path: path.write_text("{"), "images.json: damaged"),
        (lambda path: path.write_text('{"format": 2}'), r"images\.json: damaged: its format is 2, expected 1"),
        (lambda path: path.write_text('{"format": 1, "images": {"a": [1]}}'), "images.json: damaged"),
        (
            lambda path: path.write_text('{"format": 1, "images": {}}'),
            "its record of source images does not match its index",
        ),
    ],
)
def test_a_record_that_is_damaged_is_an_error(
    damage: Callable[[Path], object], told: str, source: Path, tmp_path: Path
) -> None:
    made = prepare_folders(tmp_path, source)
    damage(made.folder / RECORD)
    with pytest.raises(DataError, match=told):
        prepare_folders(tmp_path, source)


def test_other_official_files_are_noticed(tmp_path: Path) -> None:
    first, second = (write_official(tmp_path / str(seed), "cifar100", seed=seed) for seed in (1, 2))
    data = checked_data(name="cifar100", root=str(tmp_path))
    made = prepare(data, source=first, fetch=False, report=lambda *_: None)
    for source in (first, None):
        assert prepare(data, source=source, fetch=False, report=lambda *_: None) == made
    with pytest.raises(DataError, match="was prepared from other files: test, train; choose another --out"):
        prepare(data, source=second, fetch=False, report=lambda *_: None)
