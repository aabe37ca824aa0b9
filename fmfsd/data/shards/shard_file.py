"""Reader of a shard file: its header, labels and ids, and any of its images.

The file is read, not memory-mapped: with mmap, a truncated file or a failing disk kills the process by SIGBUS; a failed
read raises an error that names the file.
"""

import json
import math
import os
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.shards.index import SetIndex, ShardFile
from fmfsd.errors import DataError, Problem


class ShardReader:
    """An open shard file of `index`. All methods raise DataError if the file can't be read or is damaged."""

    def __init__(self, index: SetIndex, shard: ShardFile) -> None:
        self.path, self.shape, self._classes = index.path(shard), (shard.samples, *index.shape), len(index.classes)
        self.image_bytes = math.prod(index.shape)
        self.images_start = shard.bytes - shard.samples * self.image_bytes
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._read_error(error) from error
        self._bytes = shard.bytes
        if self._size() != shard.bytes or self.images_start < 8:
            size_error = self._size_error()
            self.close()
            raise size_error

    def close(self) -> None:
        os.close(self._descriptor)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes of the file from offset `start`."""
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[filled:]], start + filled)
            except OSError as error:
                raise self._read_error(error) from error
            if not count:
                raise self._size_error()
            filled += count

    def prefetch(self, start: int, length: int) -> None:
        """Let the kernel prefetch these bytes, so that a disk reads many ranges in parallel."""
        with suppress(OSError):  # not supported by some file systems
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def read_head(self) -> bytes:
        """Read the part of the file before the images: the header, the labels and the ids."""
        head = bytearray(self.images_start)
        self.read_into(memoryview(head), 0)
        return bytes(head)

    def parse_labels_and_ids(self, head: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Parse labels and ids from the result of `read_head`, and validate them completely."""
        try:
            labels, ids = self._parse(head)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.damage_error(f"its header is not that of a shard: {error!r}") from error
        if len(labels) and not 0 <= labels.min() <= labels.max() < self._classes:
            raise self.damage_error(f"labels from {labels.min()} to {labels.max()}, expected 0 to {self._classes - 1}")
        return labels, ids

    def damage_error(self, problem: str) -> DataError:
        """Return the error for a damaged file."""
        return DataError([Problem(str(self.path), f"damaged: {problem}; prepare the set again")])

    def _parse(self, head: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Parse the safetensors format: the length of the JSON header, the header, the tensors; the images are last."""
        start = 8 + int.from_bytes(head[:8], "little")
        header = json.loads(head[8:start])
        length, images = self.images_start - start, {"dtype": "U8", "shape": list(self.shape)}
        offsets = [length, length + math.prod(self.shape)]
        if header["images"] != {**images, "data_offsets": offsets}:
            raise ValueError(f"images are {header['images']}")
        labels, ids = (self._parse_numbers(head, header[name], start) for name in ("labels", "ids"))
        return labels, ids

    def _parse_numbers(self, head: bytes, entry: dict[str, Any], start: int) -> NDArray[np.int64]:
        count, offset = self.shape[0], entry["data_offsets"][0]
        if entry != {"dtype": "I64", "shape": [count], "data_offsets": [offset, offset + 8 * count]} or offset < 0:
            raise ValueError(f"numbers are {entry}")
        return np.frombuffer(head, "<i8", count, start + offset).astype(np.int64)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _size_error(self) -> DataError:
        return self.damage_error(f"{self._size()} bytes, expected {self._bytes}")

    def _read_error(self, error: OSError) -> DataError:
        return DataError([Problem(str(self.path), f"can't be read: {error}")])
