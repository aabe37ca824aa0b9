"""Compares what image files hold, by their first bytes, with what their names say: before any is decoded."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import features

from fmfsd.data.image_files.file_types import AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP, detect_file_type
from fmfsd.data.image_files.thread_map import map_in_threads
from fmfsd.errors import Problem
from fmfsd.terminal import Report

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
"""What a file holds, by the end of its name in lower case."""
_INTERCHANGEABLE = {PNG, JPEG}
"""ImageNet has PNG images under names of JPEG, which all tools read."""


def find_wrong_types(paths: Sequence[Path], report: Report) -> dict[Path, Problem]:
    """Return the files that do not hold what their names say, or that can't be read."""
    wrong, renamed = dict[Path, Problem](), list[Path]()
    for done, (path, found) in enumerate(zip(paths, map_in_threads(_type, paths), strict=True), 1):
        report("checking the types of files", done, len(paths))
        expected = TYPES[path.suffix.lower()]
        if isinstance(found, Problem):
            wrong[path] = found
        elif found == AVIF and not features.check("avif"):
            wrong[path] = Problem(str(path), f"{AVIF}, which the installed Pillow can't read")
        elif found != expected and {found, expected} == _INTERCHANGEABLE:
            renamed.append(path)
        elif found != expected:
            wrong[path] = Problem(str(path), f"{found}, not {expected} as its name says")
    if renamed:
        message = "%d files hold PNG images and have names of JPEG, or the reverse; they are read all the same: %s, ..."
        log.warning(message, len(renamed), renamed[0])
    return wrong


def _type(path: Path) -> str | Problem:
    try:
        return detect_file_type(path)
    except OSError as error:
        return Problem(str(path), f"can't be read: {error.strerror}")
