"""Decodes image files to squares of one size."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fmfsd.errors import Problem

FORMATS = ("PNG", "JPEG")
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for files that are no images, or too large to be meant."""


class FileImages:
    """Images (n, 3, side, side) uint8 in files, decoded each time that an array of them is asked for.

    The shorter side is made `side` pixels long, and the middle of the longer one is taken. What can't be decoded is
    black, and told to `damaged`.
    """

    def __init__(self, paths: Sequence[Path], side: int, damaged: list[Problem]) -> None:
        self._paths, self._side, self._damaged = paths, side, damaged

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, chosen: NDArray[Any]) -> "FileImages":
        return FileImages([self._paths[n] for n in np.arange(len(self))[chosen]], self._side, self._damaged)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        images = np.zeros((len(self), 3, self._side, self._side), np.uint8)
        for image, path in zip(images, self._paths, strict=True):
            try:
                image[:] = decoded(path, self._side)
            except _DAMAGE as error:
                self._damaged.append(Problem(str(path), f"can't be decoded: {error}; replace it or take it away"))
        return images


def decoded(path: Path, side: int) -> NDArray[np.uint8]:
    """(3, side, side): the middle of the image, in red, green and blue."""
    with Image.open(path, formats=FORMATS) as file:
        if file.mode not in _EIGHT_BITS:
            raise ValueError(f"its pixels are of Pillow's mode {file.mode}, and 8 bits a channel are needed")
        image = ImageOps.exif_transpose(file).convert("RGB")
    return np.asarray(_middle(image, side)).transpose(2, 0, 1)


def _middle(image: Image.Image, side: int) -> Image.Image:
    """The largest square around the middle, at `side` pixels."""
    shorter = min(image.size)
    if shorter == side:
        left, top = ((length - side) // 2 for length in image.size)
        return image.crop((left, top, left + side, top + side))
    x, y = ((length - shorter) / 2 for length in image.size)
    return image.resize((side, side), Image.Resampling.BILINEAR, (x, y, x + shorter, y + shorter))
