"""A worker's part of a split: the shards that are its own, and nothing of the rest; and these in its memory."""

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
from fmfsd.data.shards.shard_file import OpenShard
from fmfsd.data.shards.storage import MOST_READERS, STAGED_BYTES
from fmfsd.system.cpu_count import usable_cores

CPU = torch.device("cpu")
Order = Tensor | Sequence[Tensor]
"""Batches of positions, on the CPU."""


class Shards(Protocol):
    """Consecutive shards; images (n, 3, H, W) uint8, wherever they are.

    `labels` (n,) and `ids` (n,) are on the device of the batches; `numbers` and `sizes` are the shards'.
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

    def rows(self, chosen: Tensor) -> Tensor:
        """These images, in this order, on the device of the labels."""
        ...

    def in_order(self, order: Order) -> Callable[[int], Tensor]:
        """What gives `rows(order[n])` for any n, and soonest if n grows by one."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class OwnShards:
    """Shards whose images are held in memory, on the CPU or on a GPU."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    numbers: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def side(self) -> int:
        return self.images.shape[-1]

    def rows(self, chosen: Tensor) -> Tensor:
        return self.images.index_select(0, chosen.to(self.images.device))

    def in_order(self, order: Order) -> Callable[[int], Tensor]:
        there = order.to(self.images.device) if isinstance(order, Tensor) else order
        return lambda n: self.rows(there[n])

    def close(self) -> None:
        pass


def own_part(index: SetIndex, split: str, *, rank: int, world_size: int) -> tuple[range, Sequence[ShardFile]]:
    """The numbers and files of the shards of worker `rank` of `world_size`, which divides the shards."""
    files = index.splits[split]
    share = len(files) // world_size
    assert share * world_size == len(files), f"{world_size} workers do not divide {len(files)} shards"
    numbers = range(rank * share, (rank + 1) * share)
    return numbers, files[numbers.start : numbers.stop]


def load_own_shards(
    index: SetIndex, split: str, *, rank: int, world_size: int, device: torch.device = CPU
) -> OwnShards:
    """The shards of worker `rank` of `world_size` on `device`, each verified against the index as it is read.

    Raises DataError for a file that is missing or not what the index says. `world_size` divides the shards.
    """
    numbers, files = own_part(index, split, rank=rank, world_size=world_size)
    sizes = tuple(shard.samples for shard in files)
    images = torch.empty((sum(sizes), *index.shape), dtype=torch.uint8, device=device)
    labels, ids = (torch.empty(sum(sizes), dtype=torch.int64) for _ in range(2))

    def read(shard: ShardFile, end: int) -> None:
        rows = slice(end - shard.samples, end)
        labels[rows], ids[rows] = _read(index, shard, images[rows])

    with ThreadPoolExecutor(min(MOST_READERS, usable_cores()), "shard reader") as pool:
        list(pool.map(read, files, accumulate(sizes)))
    return OwnShards(images, labels.to(device), ids.to(device), tuple(numbers), sizes)


def _read(index: SetIndex, shard: ShardFile, images: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and ids; the images go to where they are to stay, a piece at a time through this machine's memory."""
    with closing(OpenShard(index, shard)) as file:
        head, start = file.before_images(), file.images_start
        digest = hashlib.sha256(head)
        for piece, buffer in _staged(images.view(-1)):
            pixels = buffer.numpy().data
            file.read_into(pixels, start)
            digest.update(pixels)
            start += len(pixels)
            piece.copy_(buffer)
        if digest.hexdigest() != shard.sha256:
            raise file.damaged("its SHA-256 sum is not the index's")
        labels, ids = map(torch.from_numpy, file.labels_and_ids(head))
        return labels, ids


def _staged(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of `values`, each with the memory of this machine that it is read into: its own if it is there."""
    staging = torch.empty(min(STAGED_BYTES, len(values)) if values.device != CPU else 0, dtype=torch.uint8)
    for piece in values.split(STAGED_BYTES):
        yield piece, piece if values.device == CPU else staging[: len(piece)]
