"""Detects a file's type from its first bytes, independently of its name."""

from pathlib import Path

HEAD_BYTES = 512
PNG, JPEG, WEBP, AVIF, GIF, TIFF, BMP = (
    f"{article} image" for article in ("a PNG", "a JPEG", "a WebP", "an AVIF", "a GIF", "a TIFF", "a BMP")
)
HTML, GZIP, TAR = "an HTML page", "a gzip file", "a tar archive"
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", GZIP),
    (b"PAR1", "a Parquet file"),
    (b"Rar!", "a RAR archive"),
    (b"version https://git-lfs", "a Git LFS pointer, whose content was not downloaded"),
)
_HEIF = {b"avif": AVIF, b"avis": AVIF, **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "a HEIC image")}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def detect_file_type(path: Path) -> str:
    """Return the type of the file `path`, such as "a PNG image" or "0 bytes". Raises OSError if it can't be read."""
    with path.open("rb") as file:
        return detect_type(file.read(HEAD_BYTES))


def detect_type(head: bytes) -> str:
    """Return the type of a file with these first bytes."""
    if not head:
        return "0 bytes"
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":
        return _HEIF.get(head[8:12], "a video")
    if head[257:262] == b"ustar":
        return TAR
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return BMP
    return _detect_text_type(head)


def _detect_text_type(head: bytes) -> str:
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in start:
        return HTML
    if start.startswith((b"<svg", b"<?xml")):
        return "an SVG image" if b"<svg" in start else "an XML document"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "text"
    return "data of an unknown type"
