"""One shard's file, open: what stands before its images, and any of these.

It is read and not mapped: a mapped file that is cut short or on a failing disk ends its reader by SIGBUS, a read one is
an error that names the file.
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


class OpenShard:
    """A shard of `index`, of the size that this says. DataError, now and later, for what can't be read or is not so."""

    def __init__(self, index: SetIndex, shard: ShardFile) -> None:
        self.path, self.shape, self._classes = index.path(shard), (shard.samples, *index.shape), len(index.classes)
        self.image_bytes = math.prod(index.shape)
        self.images_start = shard.bytes - shard.samples * self.image_bytes
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error) from error
        self._bytes = shard.bytes
        if self._size() != shard.bytes or self.images_start < 8:
            wrong = self._of_another_size()
            self.close()
            raise wrong

    def close(self) -> None:
        os.close(self._descriptor)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """As many bytes as `buffer` has, from byte `start` of the file on."""
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[filled:]], start + filled)
            except OSError as error:
                raise self._unreadable(error) from error
            if not count:
                raise self._of_another_size()
            filled += count

    def announce(self, start: int, length: int) -> None:
        """That these bytes will be read soon, so that a disk works on many at once."""
        with suppress(OSError):  # some file systems know no such thing
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def before_images(self) -> bytes:
        """The header, the labels and the ids."""
        head = bytearray(self.images_start)
        self.read_into(memoryview(head), 0)
        return bytes(head)

    def labels_and_ids(self, head: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of what stands `before_images`, which is looked at as if nobody had seen it before."""
        try:
            labels, ids = self._parsed(head)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.damaged(f"its header is none of a shard's: {error!r}") from error
        if len(labels) and not 0 <= labels.min() <= labels.max() < self._classes:
            raise self.damaged(f"labels from {labels.min()} to {labels.max()}, expected 0 to {self._classes - 1}")
        return labels, ids

    def damaged(self, what: str) -> DataError:
        return DataError([Problem(str(self.path), f"damaged: {what}; prepare the set again")])

    def _parsed(self, head: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As safetensors has it: a length, so many bytes of JSON, the tensors; the images last, as we write them."""
        start = 8 + int.from_bytes(head[:8], "little")
        told = json.loads(head[8:start])
        length, images = self.images_start - start, {"dtype": "U8", "shape": list(self.shape)}
        where = [length, length + math.prod(self.shape)]
        if told["images"] != {**images, "data_offsets": where}:
            raise ValueError(f"images are {told['images']}")
        labels, ids = (self._numbers(head, told[name], start) for name in ("labels", "ids"))
        return labels, ids

    def _numbers(self, head: bytes, told: dict[str, Any], start: int) -> NDArray[np.int64]:
        count, begin = self.shape[0], told["data_offsets"][0]
        if told != {"dtype": "I64", "shape": [count], "data_offsets": [begin, begin + 8 * count]} or begin < 0:
            raise ValueError(f"numbers are {told}")
        return np.frombuffer(head, "<i8", count, start + begin).astype(np.int64)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _of_another_size(self) -> DataError:
        return self.damaged(f"{self._size()} bytes, expected {self._bytes}")

    def _unreadable(self, error: OSError) -> DataError:
        return DataError([Problem(str(self.path), f"can't be read: {error}")])
