"""Where a worker's images are in training: in its memory, or left in their files and read ahead of their turn.

No torch, so that it can be told before a launch.
"""

import math
from dataclasses import dataclass

from fmfsd.config.names import DATASETS
from fmfsd.config.schema import DataConfig
from fmfsd.data.shards.index import SHAPE, SetIndex

LARGEST_SHARE = 0.5
"""Of a worker's memory that images are held in unless somebody says otherwise: the network needs the rest."""
WINDOW_BYTES = 64 << 20
"""Of images that are read ahead, of each split; but two batches at least."""
MOST_READERS = 8
"""Threads that read and verify shards: SHA-256 takes longer than the reading, and lets other threads work meanwhile."""
STAGED_BYTES = 32 << 20
"""Of the machine's memory, for each of them, on the way to a GPU."""
LABEL_BYTES = 8 + 8
"""And the sample's position in the official files."""
ORDER_BYTES = 48
"""Of a sample's place in an epoch and its draws, about; beside images in memory it is nothing."""


@dataclass(frozen=True)
class Part:
    """What the worker that has most has of all splits together: `samples`, whose images have `image_bytes` each."""

    samples: int
    image_bytes: int
    splits: int

    @classmethod
    def of(cls, index: SetIndex, workers: int) -> "Part":
        most = sum(index.largest_part(split, workers) for split in index.splits)
        return cls(most, math.prod(index.shape), len(index.splits))

    @classmethod
    def published(cls, data: DataConfig, workers: int) -> "Part":
        """Of a set that need not be there yet; nothing is known of an image folder."""
        if (known := DATASETS.get(data.name)) is None:
            return cls(0, 0, 0)
        share, splits = data.shards // workers, (known.train_samples - data.valid, data.valid, known.test_samples)
        most = (share * (samples // data.shards) + min(share, samples % data.shards) for samples in splits)
        return cls(sum(most), math.prod(SHAPE), sum(map(bool, splits)))

    @property
    def held_bytes(self) -> int:
        """Of memory, if images are in it."""
        return self.samples * (self.image_bytes + LABEL_BYTES)

    @property
    def read_bytes(self) -> int:
        """Of memory, if they stay in their files."""
        return self.samples * (LABEL_BYTES + ORDER_BYTES) + self.splits * WINDOW_BYTES

    def staged_bytes(self, *, in_files: bool) -> int:
        """Of the machine's memory, for a worker whose batches are on a GPU."""
        return self.read_bytes if in_files else self.samples * ORDER_BYTES + MOST_READERS * STAGED_BYTES

    def stays_in_files(self, data: DataConfig, memory: int) -> bool:
        """Where a worker may use `memory` bytes (0: not known)."""
        if data.images_in != "auto":
            return data.images_in == "files"
        return 0 < memory * LARGEST_SHARE < self.held_bytes
