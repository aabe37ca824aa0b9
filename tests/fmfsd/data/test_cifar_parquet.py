"""CIFAR in Parquet files with Hugging Face's layout."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmfsd.data.cifar.official_files import OFFICIAL
from fmfsd.data.sources import read_set
from fmfsd.errors import CheckError, DataError
from tests.helpers.official import write_official, write_parquet


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("location", ["", "inside", "file"])
def test_parquet_files_give_the_same_set_as_the_official_files(
    name: str, location: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    official = OFFICIAL[name]
    folder = write_parquet(tmp_path / "parquet" / (official.parquet_folder if location == "inside" else ""), name)
    source = folder / "test-00000-of-00001.parquet" if location == "file" else tmp_path / "parquet"
    result, expected = read_set(name, source), read_set(name, write_official(tmp_path / "pickles", name))
    assert result.classes == official.classes
    for part in ("train", "test"):
        one, other = getattr(result, part), getattr(expected, part)
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)
    assert [(file.file, file.official) for file in result.sources] == [
        ("train-00000-of-00001.parquet", False),
        ("test-00000-of-00001.parquet", False),
    ]
    assert "Parquet files have no official MD5 sums" in caplog.text


def test_the_class_names_are_the_official_ones(cifar_dir: Path) -> None:
    for name in OFFICIAL:
        assert read_set(name, cifar_dir).classes == OFFICIAL[name].classes


def test_parquet_files_of_the_other_set_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"train-.*has no column fine_label among img, label, coarse_label; check that it is the right data set",
    ):
        read_set("cifar100", write_parquet(tmp_path, "cifar10"))
    with pytest.raises(DataError, match="has no column img and no label among image, fine_label"):
        read_set("cifar10", write_parquet(tmp_path, "cifar100", columns={"img": "image"}))


def test_damaged_parquet_files_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, "cifar100") / "test-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=rf"{path}: can't be read: .*; download it again"):
        read_set("cifar100", tmp_path)
    path.write_bytes(whole.replace(b"\x89PNG", b"\x89XXX", 1))
    with pytest.raises(DataError, match=rf"{path}: (image 0 can't be decoded|can't be read)"):
        read_set("cifar100", tmp_path)


def test_parquet_images_of_another_size_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, format="PNG")
    monkeypatch.setattr("tests.helpers.official._png", lambda _: file.getvalue())
    with pytest.raises(DataError, match="image 0 has 64 x 48 pixels, expected 32 x 32"):
        read_set("cifar100", write_parquet(tmp_path, "cifar100"))


def test_parquet_files_without_pyarrow_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path, "cifar100")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(CheckError, match=r"can't be read without pyarrow: pip install 'fmfsd\[parquet\]'"):
        read_set("cifar100", tmp_path)
