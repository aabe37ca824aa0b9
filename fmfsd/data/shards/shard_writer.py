"""Writes a shard file image by image, so that memory use does not grow with the shard."""

import hashlib
import json
import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.shards.index import ShardFile


def write_shard(
    path: Path, images: Iterable[bytes], labels: NDArray[np.int64], ids: NDArray[np.int64], shape: tuple[int, ...]
) -> ShardFile:
    """Write `images` of `shape`, one per label, with labels and ids. Return the file's entry for the index."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in chain((_build_header(len(labels), shape), ids.tobytes(), labels.tobytes()), images):
            digest.update(block)
            file.write(block)
        size = file.tell()
    return ShardFile(path.name, len(labels), size, digest.hexdigest())


def _build_header(samples: int, shape: tuple[int, ...]) -> bytes:
    """Return the safetensors header: a length, and JSON padded to a multiple of eight bytes."""
    numbers, pixels = 8 * samples, samples * math.prod(shape)
    content = {
        "ids": {"dtype": "I64", "shape": [samples], "data_offsets": [0, numbers]},
        "labels": {"dtype": "I64", "shape": [samples], "data_offsets": [numbers, 2 * numbers]},
        "images": {"dtype": "U8", "shape": [samples, *shape], "data_offsets": [2 * numbers, 2 * numbers + pixels]},
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text
