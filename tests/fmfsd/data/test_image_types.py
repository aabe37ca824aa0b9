"""Files of images: what is read, what is reported before anything is decoded, and what can be skipped."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from fmfsd.data.image_files import image_reader
from fmfsd.data.image_files.decode import decoded
from fmfsd.data.image_files.file_types import detect_type
from fmfsd.data.shards.index import SetIndex
from fmfsd.errors import ConfigError, DataError
from tests.helpers.folders import prepare_folders, write_folders, write_image
from tests.helpers.processes import run_command

SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:256:8, 0:256:8], 100), axis=-1).astype(np.uint8)
"""(32, 32, 3), which lossy formats keep within a few levels."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=3)


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "images")


def sums(index: SetIndex) -> list[str]:
    return [shard.sha256 for files in index.splits.values() for shard in files]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.png", 0),
        ("a.bmp", 0),
        ("a.TIFF", 0),
        ("a.tif", 0),
        ("a.jpg", 12),
        ("a.webp", 12),
        ("a.gif", 40),
        pytest.param("a.avif", 12, marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")),
    ],
)
def test_each_format_is_read_as_it_was_drawn(name: str, tolerance: int, tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / name)
    found = decoded(tmp_path / name, 32).transpose(1, 2, 0)
    assert np.abs(found.astype(int) - SMOOTH).max() <= tolerance


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_the_first_frame_of_several_is_taken(name: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert decoded(tmp_path / name, 32).mean((1, 2)).round() == pytest.approx([255, 0, 0], abs=3)


def write_png_16(path: Path, pixels: NDArray[np.uint16]) -> Path:
    """Write grey (H, W) or coloured (H, W, 3) pixels of 16 bits, which Pillow does not write in colour."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_16_bits_are_scaled_to_8_in_grey_as_in_colours(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    grey = decoded(write_png_16(tmp_path / "grey.png", levels), 32)
    coloured = decoded(write_png_16(tmp_path / "colours.png", np.stack([levels] * 3, axis=-1)), 32)
    assert np.array_equal(grey, coloured)
    assert np.abs(grey - levels / 65535 * 255).max() <= 1
    assert (grey.min(), grey.max()) == (0, 255)
    for order in ("<u2", ">u2"):
        Image.fromarray(levels.astype(order)).save(tmp_path / "grey.tif")
        assert np.array_equal(decoded(tmp_path / "grey.tif", 32), grey)


def test_32_bits_are_refused(copied: Path, tmp_path: Path) -> None:
    Image.fromarray(np.ones((32, 32), np.float32)).save(copied / "train" / "ant" / "deep.tif")
    with pytest.raises(DataError, match=r"ant/deep\.tif: .*Pillow's mode F; needed are 8 or 16 bits per channel"):
        prepare_folders(tmp_path / "sets", copied)


BROKEN_EXIF = [
    b"Exif\0\0neither II nor MM",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\x06\0\0",  # the orientation as text
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\x01\x1a\0\x03\0\0\0\x01",
]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_broken_exif_data_stops_nothing(exif: bytes, suffix: str, copied: Path, tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(copied / "train" / "ant" / f"broken.{suffix}", exif=exif)
    assert prepare_folders(tmp_path / "sets", copied).samples("train") == 13


def test_an_image_is_turned_though_other_exif_data_can_not_be_written_again(tmp_path: Path) -> None:
    """Pillow's own function turns it, then fails to write the remaining tags."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    orientation = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    number_as_text = b"\x01\x1a\0\x02\0\0\0\x04abc\0"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + orientation + number_as_text + b"\0\0\0\0"
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert decoded(tmp_path / "turned.png", 32)[0, 0].tolist() == [0] * 16 + [255] * 16


WRONG = {
    "page.jpg": (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page, not a JPEG image"),
    "empty.png": (b"", "0 bytes, not a PNG image"),
    "zeros.jpeg": (bytes(5000), "nothing but zero bytes, not a JPEG image"),
    "notes.bmp": (b"BMW, Audi, VW", "text, not a BMP image"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "photo.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image, not a JPEG image"),
    "film.gif": (b"\0\0\0\x18ftypisom\0\0\0\0", "a video, not a GIF image"),
}


def add_wrong(folder: Path) -> dict[str, str]:
    """Write files with wrong names to `folder`. Return what each holds, by name."""
    for name, (content, _) in WRONG.items():
        (folder / name).write_bytes(content)
    Image.fromarray(SMOOTH).save(folder / "web.jpg", format="WEBP")
    Image.fromarray(SMOOTH).save(folder / "moving.png", format="GIF")
    told = {name: told for name, (_, told) in WRONG.items()}
    return {**told, "web.jpg": "a WebP image, not a JPEG image", "moving.png": "a GIF image, not a PNG image"}


def test_wrongly_named_files_are_all_reported_before_any_is_decoded(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = add_wrong(copied / "train" / "bee")
    monkeypatch.setattr(image_reader, "decoded", None)
    with pytest.raises(DataError) as caught:
        prepare_folders(tmp_path / "sets", copied)
    for name, expected in told.items():
        assert f"{copied}/train/bee/{name}: {expected}" in str(caught.value)
    assert str(caught.value).endswith("skip them: --skip-damaged")
    assert not (tmp_path / "sets" / "folder-shards4").exists()


def test_png_under_a_name_of_jpeg_is_read_with_one_line(
    copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(SMOOTH).save(copied / "train" / "bee" / "n02105855_2933.JPEG", format="PNG")
    assert prepare_folders(tmp_path / "sets", copied).samples("train") == 13
    assert "1 files are PNG images with a JPEG extension or the reverse" in caplog.text


def test_damaged_files_are_skipped_as_if_they_were_not_there(
    source: Path, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrongly named ones, a dangling link, and one that only its decoding shows to be damaged."""
    told = add_wrong(copied / "train" / "bee")
    (copied / "val" / "ant" / "gone.png").symlink_to("nowhere.png")
    short = write_image(copied / "val" / "dog" / "short.png", side=64)
    short.write_bytes(short.read_bytes()[:-5000])
    with pytest.raises(DataError, match="skip them: --skip-damaged"):
        prepare_folders(tmp_path / "sets", copied)
    found = prepare_folders(tmp_path / "sets", copied, skip_damaged=True)
    assert sums(found) == sums(prepare_folders(tmp_path / "clean", source))
    assert found.skipped == len(told) + 2
    assert found.describe().endswith("; damaged images skipped: 11")
    assert "short.png: can't be decoded: image file is truncated" in caplog.text


def test_a_class_whose_images_are_all_damaged_is_an_error(copied: Path, tmp_path: Path) -> None:
    for path in (copied / "val" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="all test images of class cat are damaged"):
        prepare_folders(tmp_path / "sets", copied, skip_damaged=True)


@pytest.mark.usefixtures("processes")
def test_the_command_skips_damaged_files(copied: Path, tmp_path: Path) -> None:
    (copied / "train" / "ant" / "empty.jpg").touch()
    command = ("data", "prepare", "folder", "--source", str(copied), "--out", str(tmp_path), "--shards", "4")
    refused = run_command("fmfsd", *command, cwd=tmp_path)
    assert (refused.returncode, "empty.jpg: 0 bytes" in refused.stderr) == (3, True)
    made = run_command("fmfsd", *command, "--skip-damaged", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "; damaged images skipped: 1" in made.stdout


def test_official_sets_have_no_files_to_skip(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--skip-damaged: applies to image folders only, not to synthetic10"):
        prepare_folders(tmp_path, None, name="synthetic10", skip_damaged=True)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        (b"<?xml version='1.0'?><svg>", "an SVG image"),
        (b"<?xml version='1.0'?><feed>", "an XML document"),
        (b"<?xml version='1.0'?><!DOCTYPE html PUBLIC><html>", "an HTML page"),
        (b"RIFF\0\0\0\0WAVE", "data of an unknown type"),
        (b"\0\0\0\x20ftypavif", "an AVIF image"),
        ("Bären".encode(), "text"),
    ],
)
def test_types_are_recognised_by_the_first_bytes(head: bytes, expected: str) -> None:
    assert detect_type(head) == expected
