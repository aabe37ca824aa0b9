"""A worker's part of a split in memory: the shards that are its own, and nothing of the rest."""

import hashlib
from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fmfsd.data.index import SetIndex, ShardFile
from fmfsd.errors import DataError, Problem


@dataclass(frozen=True)
class OwnShards:
    """Images (n, 3, H, W) uint8, labels (n,) and ids (n,) of consecutive shards; `sizes` and `numbers` are theirs."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    numbers: tuple[int, ...]
    sizes: tuple[int, ...]

    def to(self, device: torch.device) -> "OwnShards":
        return OwnShards(self.images.to(device), self.labels.to(device), self.ids.to(device), self.numbers, self.sizes)


def load_own_shards(index: SetIndex, split: str, *, rank: int, world_size: int) -> OwnShards:
    """The shards of worker `rank` of `world_size`, each verified against the index as it is read.

    Raises DataError for a file that is missing or not what the index says. `world_size` divides the shards.
    """
    files = index.splits[split]
    share = len(files) // world_size
    assert share * world_size == len(files), f"{world_size} workers do not divide {len(files)} shards"
    numbers = range(rank * share, (rank + 1) * share)
    own = [files[number] for number in numbers]
    sizes = tuple(shard.samples for shard in own)
    images = torch.empty((sum(sizes), *index.shape), dtype=torch.uint8)
    labels, ids = (torch.empty(sum(sizes), dtype=torch.int64) for _ in range(2))
    start = 0
    for shard in own:
        part, rows = _read(index, shard), slice(start, start + shard.samples)
        images[rows], labels[rows], ids[rows] = part["images"], part["labels"], part["ids"]
        start = rows.stop
    return OwnShards(images, labels, ids, tuple(numbers), sizes)


def _read(index: SetIndex, shard: ShardFile) -> dict[str, Tensor]:
    path = index.path(shard)
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise DataError([Problem(str(path), "damaged: its SHA-256 sum is not the index's; prepare the set again")])
        return safetensors.torch.load(content)
    except (OSError, SafetensorError) as error:
        raise DataError([Problem(str(path), f"can't be read: {error}")]) from error
