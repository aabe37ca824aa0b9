"""Checks, before decoding, that the type of each image file (by its first bytes) matches its file name extension."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import features

from fmfsd.data.image_files.file_types import AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP, detect_file_type
from fmfsd.data.image_files.thread_map import map_in_threads
from fmfsd.errors import Problem
from fmfsd.terminal import ProgressCallback

log = logging.getLogger(__name__)
TYPES = {
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": WEBP,
    ".avif": AVIF,
    ".gif": GIF,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".bmp": BMP,
}
"""File type by file name extension in lower case."""
_INTERCHANGEABLE = {PNG, JPEG}
"""ImageNet has PNG images with JPEG extensions, which all tools read."""


def find_wrong_types(paths: Sequence[Path], report: ProgressCallback) -> dict[Path, Problem]:
    """Return the files whose type does not match their extension, or that can't be read."""
    wrong, mismatched = dict[Path, Problem](), list[Path]()
    for done, (path, detected) in enumerate(zip(paths, map_in_threads(_detect, paths), strict=True), 1):
        report("checking the types of files", done, len(paths))
        expected = TYPES[path.suffix.lower()]
        if isinstance(detected, Problem):
            wrong[path] = detected
        elif detected == AVIF and not features.check("avif"):
            wrong[path] = Problem(str(path), f"{AVIF}, which the installed Pillow can't read")
        elif detected != expected and {detected, expected} == _INTERCHANGEABLE:
            mismatched.append(path)
        elif detected != expected:
            wrong[path] = Problem(str(path), f"{detected}, not {expected} as its extension says")
    if mismatched:
        message = (
            "%d files are PNG images with a JPEG extension or the reverse; they are read by their content: %s, ..."
        )
        log.warning(message, len(mismatched), mismatched[0])
    return wrong


def _detect(path: Path) -> str | Problem:
    try:
        return detect_file_type(path)
    except OSError as error:
        return Problem(str(path), f"can't be read: {error.strerror}")
