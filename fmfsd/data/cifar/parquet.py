"""Reads CIFAR from Hugging Face's Parquet files (uoft-cs/cifar10, uoft-cs/cifar100) of encoded images and labels."""

import io
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmfsd.data.image_files.decode import FORMATS
from fmfsd.data.image_files.thread_map import map_in_threads
from fmfsd.data.shards.index import IMAGE_SHAPE
from fmfsd.errors import CheckError, DataError, Problem

IMAGES = "img"


def read_parquet(path: Path, label_column: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the images in `path` as rows of 3072 bytes, and their labels.

    Raises DataError for an invalid file, and CheckError if pyarrow is not installed.
    """
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise CheckError([Problem(str(path), "can't be read without pyarrow: pip install 'fmfsd[parquet]'")]) from error
    try:
        names = parquet.read_schema(path).names
        if missing := [name for name in (IMAGES, label_column) if name not in names]:
            found = (
                f"no column {' and no '.join(missing)} among {', '.join(names)}; check that it is the right data set"
            )
            raise DataError([Problem(str(path), f"has {found}")])
        table = parquet.read_table(path, columns=[IMAGES, label_column])
    except (OSError, ValueError) as error:  # pyarrow's own errors are among them
        raise DataError([Problem(str(path), f"can't be read: {error}; download it again")]) from error
    rows = list(map_in_threads(_decode, table[IMAGES].to_pylist()))
    if wrong := [f"image {number} {row}" for number, row in enumerate(rows) if isinstance(row, str)]:
        raise DataError([Problem(str(path), message) for message in wrong[:10]])
    return np.array(rows, np.uint8).reshape(-1, int(np.prod(IMAGE_SHAPE))), table[label_column].to_pylist()


def _decode(image: Any) -> NDArray[np.uint8] | str:
    """Return the pixels (3, 32, 32) of an encoded image, or a description of what is wrong with it."""
    try:
        with Image.open(io.BytesIO(image["bytes"]), formats=FORMATS) as file:
            pixels = np.asarray(file.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # decoders raise nearly anything for damaged data
        return f"can't be decoded: {str(error) or type(error).__name__}"
    return (
        pixels if pixels.shape == IMAGE_SHAPE else f"has {pixels.shape[2]} x {pixels.shape[1]} pixels, expected 32 x 32"
    )
