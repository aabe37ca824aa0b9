"""Image files: supported formats, errors that are detected before decoding, and skipping of damaged files."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from fmfsd.data.image_files import image_reader
from fmfsd.data.image_files.decode import decode_image
from fmfsd.data.image_files.file_types import detect_type
from fmfsd.data.shards.index import SetIndex
from fmfsd.errors import ConfigError, DataError
from tests.helpers.folders import prepare_folders, write_folders, write_image
from tests.helpers.processes import run_command

SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:256:8, 0:256:8], 100), axis=-1).astype(np.uint8)
"""A smooth image (32, 32, 3), which lossy formats reproduce within a few levels."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=3)


@pytest.fixture
def source_copy(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "images")


def checksums(index: SetIndex) -> list[str]:
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
def test_each_format_is_decoded_correctly(name: str, tolerance: int, tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / name)
    image = decode_image(tmp_path / name, 32).transpose(1, 2, 0)
    assert np.abs(image.astype(int) - SMOOTH).max() <= tolerance


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_of_several_frames_the_first_is_used(name: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert decode_image(tmp_path / name, 32).mean((1, 2)).round() == pytest.approx([255, 0, 0], abs=3)


def write_png_16(path: Path, pixels: NDArray[np.uint16]) -> Path:
    """Write grey (H, W) or colour (H, W, 3) pixels of 16 bits; Pillow can't write 16 bits in colour."""
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


def test_16_bit_images_are_scaled_to_8_bits_in_grey_and_in_colour(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    grey = decode_image(write_png_16(tmp_path / "grey.png", levels), 32)
    colour = decode_image(write_png_16(tmp_path / "colours.png", np.stack([levels] * 3, axis=-1)), 32)
    assert np.array_equal(grey, colour)
    assert np.abs(grey - levels / 65535 * 255).max() <= 1
    assert (grey.min(), grey.max()) == (0, 255)
    for order in ("<u2", ">u2"):
        Image.fromarray(levels.astype(order)).save(tmp_path / "grey.tif")
        assert np.array_equal(decode_image(tmp_path / "grey.tif", 32), grey)


def test_32_bit_images_are_errors(source_copy: Path, tmp_path: Path) -> None:
    Image.fromarray(np.ones((32, 32), np.float32)).save(source_copy / "train" / "ant" / "deep.tif")
    with pytest.raises(DataError, match=r"ant/deep\.tif: .*Pillow's mode F; needed are 8 or 16 bits per channel"):
        prepare_folders(tmp_path / "sets", source_copy)


BROKEN_EXIF = [
    b"Exif\0\0neither II nor MM",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\x06\0\0",  # the orientation as text
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\x01\x1a\0\x03\0\0\0\x01",
]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_broken_exif_data_are_ignored(exif: bytes, suffix: str, source_copy: Path, tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(source_copy / "train" / "ant" / f"broken.{suffix}", exif=exif)
    assert prepare_folders(tmp_path / "sets", source_copy).num_samples("train") == 13


def test_an_image_is_rotated_even_if_its_other_exif_data_are_invalid(tmp_path: Path) -> None:
    """Pillow's own function rotates the image, then fails to write the remaining tags."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    orientation = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    number_as_text = b"\x01\x1a\0\x02\0\0\0\x04abc\0"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + orientation + number_as_text + b"\0\0\0\0"
    Image.fromarray(pixels).save(tmp_path / "rotated.png", exif=exif)
    assert decode_image(tmp_path / "rotated.png", 32)[0, 0].tolist() == [0] * 16 + [255] * 16


MISNAMED_FILES = {
    "page.jpg": (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page, not a JPEG image"),
    "empty.png": (b"", "0 bytes, not a PNG image"),
    "zeros.jpeg": (bytes(5000), "nothing but zero bytes, not a JPEG image"),
    "notes.bmp": (b"BMW, Audi, VW", "text, not a BMP image"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "photo.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image, not a JPEG image"),
    "film.gif": (b"\0\0\0\x18ftypisom\0\0\0\0", "a video, not a GIF image"),
}


def add_misnamed_files(folder: Path) -> dict[str, str]:
    """Write files with wrong suffixes to `folder`; return the expected error messages by name."""
    for name, (content, _) in MISNAMED_FILES.items():
        (folder / name).write_bytes(content)
    Image.fromarray(SMOOTH).save(folder / "web.jpg", format="WEBP")
    Image.fromarray(SMOOTH).save(folder / "moving.png", format="GIF")
    messages = {name: message for name, (_, message) in MISNAMED_FILES.items()}
    return {**messages, "web.jpg": "a WebP image, not a JPEG image", "moving.png": "a GIF image, not a PNG image"}


def test_all_files_with_wrong_suffixes_are_reported_before_any_is_decoded(
    source_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = add_misnamed_files(source_copy / "train" / "bee")
    monkeypatch.setattr(image_reader, "decode_image", None)
    with pytest.raises(DataError) as caught:
        prepare_folders(tmp_path / "sets", source_copy)
    for name, expected in messages.items():
        assert f"{source_copy}/train/bee/{name}: {expected}" in str(caught.value)
    assert str(caught.value).endswith("skip them: --skip-damaged")
    assert not (tmp_path / "sets" / "folder-shards4").exists()


def test_png_files_with_a_jpeg_suffix_are_read_and_logged(
    source_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(SMOOTH).save(source_copy / "train" / "bee" / "n02105855_2933.JPEG", format="PNG")
    assert prepare_folders(tmp_path / "sets", source_copy).num_samples("train") == 13
    assert "1 files are PNG images with a JPEG extension or the reverse" in caplog.text


def test_the_set_without_damaged_files_is_as_if_they_did_not_exist(
    source: Path, source_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files with wrong suffixes, a dangling link, and a file whose damage is found only by decoding."""
    messages = add_misnamed_files(source_copy / "train" / "bee")
    (source_copy / "val" / "ant" / "gone.png").symlink_to("nowhere.png")
    short = write_image(source_copy / "val" / "dog" / "short.png", side=64)
    short.write_bytes(short.read_bytes()[:-5000])
    with pytest.raises(DataError, match="skip them: --skip-damaged"):
        prepare_folders(tmp_path / "sets", source_copy)
    index = prepare_folders(tmp_path / "sets", source_copy, skip_damaged=True)
    assert checksums(index) == checksums(prepare_folders(tmp_path / "clean", source))
    assert index.skipped == len(messages) + 2
    assert index.describe().endswith("; damaged images skipped: 11")
    assert "short.png: can't be decoded: image file is truncated" in caplog.text


def test_a_class_whose_images_are_all_damaged_is_an_error(source_copy: Path, tmp_path: Path) -> None:
    for path in (source_copy / "val" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="all test images of class cat are damaged"):
        prepare_folders(tmp_path / "sets", source_copy, skip_damaged=True)


@pytest.mark.usefixtures("processes")
def test_the_command_skips_damaged_files(source_copy: Path, tmp_path: Path) -> None:
    (source_copy / "train" / "ant" / "empty.jpg").touch()
    command = ("data", "prepare", "folder", "--source", str(source_copy), "--out", str(tmp_path), "--shards", "4")
    with_error = run_command("fmfsd", *command, cwd=tmp_path)
    assert (with_error.returncode, "empty.jpg: 0 bytes" in with_error.stderr) == (3, True)
    completed = run_command("fmfsd", *command, "--skip-damaged", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert "; damaged images skipped: 1" in completed.stdout


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
