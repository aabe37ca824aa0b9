"""A worker's shards of a split, loaded into memory, and the interface of all shards."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from fmfsd.data.shards.index import SetIndex, ShardFile
from fmfsd.data.shards.shard_file import ShardReader
from fmfsd.data.shards.storage import MAX_READERS, STAGING_BYTES
from fmfsd.system.cpu_count import usable_cores

CPU = torch.device("cpu")
BatchOrder = Tensor | Sequence[Tensor]
"""Batches of sample indices, on the CPU."""


class Shards(Protocol):
    """A worker's consecutive shards, with n images (3, H, W) uint8, in memory or in files.

    `labels` (n,) and `ids` (n,) are on the device of the batches; `numbers` and `sizes` are those of the shards.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def ids(self) -> Tensor: ...

    @property
    def numbers(self) -> tuple[int, ...]: ...

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def side(self) -> int: ...

    def read_images(self, indices: Tensor) -> Tensor:
        """Return the images with these indices, in this order, on the device of the labels."""
        ...

    def batch_reader(self, order: BatchOrder) -> Callable[[int], Tensor]:
        """Return a function of n that returns `read_images(order[n])`; it is fastest if n increases by one per call."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ShardsInMemory:
    """Shards whose images are in memory, on the CPU or on a GPU."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    numbers: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def side(self) -> int:
        return self.images.shape[-1]

    def read_images(self, indices: Tensor) -> Tensor:
        return self.images.index_select(0, indices.to(self.images.device))

    def batch_reader(self, order: BatchOrder) -> Callable[[int], Tensor]:
        indices = order.to(self.images.device) if isinstance(order, Tensor) else order
        return lambda n: self.read_images(indices[n])

    def close(self) -> None:
        pass


def select_worker_shards(
    index: SetIndex, split: str, *, rank: int, world_size: int
) -> tuple[range, Sequence[ShardFile]]:
    """Return the numbers and files of the shards of worker `rank`; `world_size` must divide the number of shards."""
    files = index.splits[split]
    share = len(files) // world_size
    assert share * world_size == len(files), f"{world_size} workers do not divide {len(files)} shards"
    numbers = range(rank * share, (rank + 1) * share)
    return numbers, files[numbers.start : numbers.stop]


def load_worker_shards(
    index: SetIndex, split: str, *, rank: int, world_size: int, device: torch.device = CPU
) -> ShardsInMemory:
    """Load the shards of worker `rank` of `world_size` to `device`, verifying each checksum while it is read.

    Raises DataError for a file that is missing or differs from the index. `world_size` must divide the number of
    shards.
    """
    numbers, files = select_worker_shards(index, split, rank=rank, world_size=world_size)
    sizes = tuple(shard.samples for shard in files)
    images = torch.empty((sum(sizes), *index.shape), dtype=torch.uint8, device=device)
    labels, ids = (torch.empty(sum(sizes), dtype=torch.int64) for _ in range(2))

    def read(shard: ShardFile, end: int) -> None:
        rows = slice(end - shard.samples, end)
        labels[rows], ids[rows] = _read(index, shard, images[rows])

    with ThreadPoolExecutor(min(MAX_READERS, usable_cores()), "shard reader") as pool:
        list(pool.map(read, files, accumulate(sizes)))
    return ShardsInMemory(images, labels.to(device), ids.to(device), tuple(numbers), sizes)


def _read(index: SetIndex, shard: ShardFile, images: Tensor) -> tuple[Tensor, Tensor]:
    """Read the shard's images into `images`, in pieces through host memory; return its labels and ids."""
    with closing(ShardReader(index, shard)) as file:
        head, start = file.read_head(), file.images_start
        digest = hashlib.sha256(head)
        for piece, buffer in _staged(images.view(-1)):
            pixels = buffer.numpy().data
            file.read_into(pixels, start)
            digest.update(pixels)
            start += len(pixels)
            piece.copy_(buffer)
        if digest.hexdigest() != shard.sha256:
            raise file.damage_error("its SHA-256 sum differs from the index")
        labels, ids = map(torch.from_numpy, file.parse_labels_and_ids(head))
        return labels, ids


def _staged(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of `values`, each with the host buffer for reading it: the piece itself if it is on the CPU."""
    staging = torch.empty(min(STAGING_BYTES, len(values)) if values.device != CPU else 0, dtype=torch.uint8)
    for piece in values.split(STAGING_BYTES):
        yield piece, piece if values.device == CPU else staging[: len(piece)]
