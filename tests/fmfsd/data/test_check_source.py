"""A prepared set is not used if its source has changed since it was prepared."""

import os
import shutil
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest
from PIL import Image

from fmfsd.config.load import load_data_config
from fmfsd.data.image_files.source_files import RECORD, FileState
from fmfsd.data.prepare import prepare
from fmfsd.errors import DataError
from tests.helpers.folders import prepare_folders, write_folders, write_image
from tests.helpers.official import write_official


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "images", train=3)


def change_in_place(path: Path) -> None:
    """Change the pixels of an image, but not its name and file size."""
    colour, before = (200, 10, 10), path.stat()
    Image.new("RGB", (32, 32), colour).save(path, format="BMP")
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def bitmap(source: Path) -> Path:
    """Write and return an image file whose size does not depend on its pixels."""
    path = source / "train" / "ant" / "x.bmp"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    return path


def test_a_changed_image_with_the_same_name_and_size_is_detected(source: Path, tmp_path: Path) -> None:
    path = bitmap(source)
    index = prepare_folders(tmp_path, source)
    assert prepare_folders(tmp_path, source) == index
    change_in_place(path)
    with pytest.raises(DataError, match=r"was prepared from other files: 1 changed \(train/ant/x\.bmp\); choose anoth"):
        prepare_folders(tmp_path, source)
    shutil.rmtree(index.folder)
    assert prepare_folders(tmp_path, source).sources != index.sources


def test_a_changed_modification_time_alone_is_no_change(source: Path, tmp_path: Path) -> None:
    index = prepare_folders(tmp_path, source)
    for path in source.rglob("*.*"):
        os.utime(path)
    assert prepare_folders(tmp_path, source) == index


def test_only_files_with_a_changed_modification_time_are_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, touched_file = prepare_folders(tmp_path, source), source / "val" / "cat" / "0002.png"
    os.utime(touched_file)
    paths_read, original = list[str](), FileState.read

    def read_and_record(file: BufferedReader) -> FileState:
        paths_read.append(file.name)
        return original(file)

    monkeypatch.setattr(FileState, "read", read_and_record)
    assert prepare_folders(tmp_path, source) == index
    assert paths_read == [str(touched_file)]


def remove_file(path: Path) -> None:
    path.unlink()


def add_file(path: Path) -> None:
    write_image(path.with_name("new.png"))


def append_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def replace_by_html(path: Path) -> None:
    path.write_bytes(b"<html>")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove_file, r"1 removed \(val/cat/0002\.png\)"),
        (add_file, r"1 added \(val/cat/new\.png\)"),
        (append_byte, r"1 changed \(val/cat/0002\.png\)"),
        (replace_by_html, r"1 changed \(val/cat/0002\.png\)"),
    ],
)
def test_removed_added_and_changed_files_are_reported(
    change: Callable[[Path], None], expected: str, source: Path, tmp_path: Path
) -> None:
    prepare_folders(tmp_path, source)
    change(source / "val" / "cat" / "0002.png")
    with pytest.raises(DataError, match=f"was prepared from other files: {expected}"):
        prepare_folders(tmp_path, source)


def test_skipped_files_are_a_change_only_once_they_are_repaired(source: Path, tmp_path: Path) -> None:
    empty, short = (source / "train" / "ant" / name for name in ("empty.png", "short.png"))
    empty.touch()
    content = write_image(short, side=64).read_bytes()
    short.write_bytes(content[:-5000])
    index = prepare_folders(tmp_path, source, skip_damaged=True)
    assert (index.skipped, prepare_folders(tmp_path, source)) == (2, index)
    shutil.copy(source / "train" / "ant" / "0000.png", empty)
    short.write_bytes(content)
    with pytest.raises(DataError, match=r"1 changed \(train/ant/short\.png\), 1 added \(train/ant/empty\.png\)"):
        prepare_folders(tmp_path, source)


def test_the_same_images_elsewhere_give_the_same_index(source: Path, tmp_path: Path) -> None:
    index = prepare_folders(tmp_path / "a", source)
    other = prepare_folders(tmp_path / "b", shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile))
    assert (index.folder / "index.json").read_bytes() == (other.folder / "index.json").read_bytes()


@pytest.mark.parametrize(
    ("damage", "expected"),
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
def test_a_damaged_record_of_the_source_is_an_error(
    damage: Callable[[Path], object], expected: str, source: Path, tmp_path: Path
) -> None:
    index = prepare_folders(tmp_path, source)
    damage(index.folder / RECORD)
    with pytest.raises(DataError, match=expected):
        prepare_folders(tmp_path, source)


def test_changed_official_files_are_detected(tmp_path: Path) -> None:
    first, second = (write_official(tmp_path / str(seed), "cifar100", seed=seed) for seed in (1, 2))
    data = load_data_config(name="cifar100", root=str(tmp_path))
    index = prepare(data, source=first, fetch=False, report=lambda *_: None)
    for source in (first, None):
        assert prepare(data, source=source, fetch=False, report=lambda *_: None) == index
    with pytest.raises(DataError, match="was prepared from other files: test, train; choose another --out"):
        prepare(data, source=second, fetch=False, report=lambda *_: None)
