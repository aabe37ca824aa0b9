"""Decides whether a worker's images are loaded into memory or streamed from their files.

Without torch, so that a launch can decide it before the workers start.
"""

import math
from dataclasses import dataclass

from fmfsd.config.names import DATASETS
from fmfsd.config.schema import DataConfig
from fmfsd.data.shards.index import IMAGE_SHAPE, SetIndex

MAX_MEMORY_FRACTION = 0.5
"""Fraction of a worker's memory that images may take with data.images_in auto: the network needs the rest."""
PREFETCH_BYTES = 64 << 20
"""Bytes of images that are prefetched per split; at least two batches are."""
MAX_READERS = 8
"""Threads that read and verify shards: SHA-256 takes longer than reading, and releases the GIL."""
STAGING_BYTES = 32 << 20
"""Bytes of host memory per reader thread, for copies to a GPU."""
LABEL_BYTES = 8 + 8
"""Bytes per sample of its label and id."""
ORDER_BYTES = 48
"""Approximate bytes per sample of its position in the epoch and its draws; negligible next to images in memory."""


@dataclass(frozen=True)
class WorkerShare:
    """The samples of the worker with the most, over all `splits`; each image has `image_bytes` bytes."""

    samples: int
    image_bytes: int
    splits: int

    @classmethod
    def from_index(cls, index: SetIndex, workers: int) -> "WorkerShare":
        most = sum(index.max_worker_samples(split, workers) for split in index.splits)
        return cls(most, math.prod(index.shape), len(index.splits))

    @classmethod
    def from_published_sizes(cls, data: DataConfig, workers: int) -> "WorkerShare":
        """Return the share by a set's published sizes, before it is prepared; zeros for an image folder."""
        if (known := DATASETS.get(data.name)) is None:
            return cls(0, 0, 0)
        share, splits = data.shards // workers, (known.train_samples - data.valid, data.valid, known.test_samples)
        most = (share * (samples // data.shards) + min(share, samples % data.shards) for samples in splits)
        return cls(sum(most), math.prod(IMAGE_SHAPE), sum(map(bool, splits)))

    @property
    def in_memory_bytes(self) -> int:
        """Bytes of memory if images are loaded into memory."""
        return self.samples * (self.image_bytes + LABEL_BYTES)

    @property
    def streaming_bytes(self) -> int:
        """Bytes of memory if images are streamed from their files."""
        return self.samples * (LABEL_BYTES + ORDER_BYTES) + self.splits * PREFETCH_BYTES

    def staging_bytes(self, *, stream: bool) -> int:
        """Return the bytes of host memory of a worker whose batches are on a GPU."""
        return self.streaming_bytes if stream else self.samples * ORDER_BYTES + MAX_READERS * STAGING_BYTES

    def should_stream(self, data: DataConfig, memory: int) -> bool:
        """Return whether images are streamed from files, if a worker may use `memory` bytes (0: unknown)."""
        if data.images_in != "auto":
            return data.images_in == "files"
        return 0 < memory * MAX_MEMORY_FRACTION < self.in_memory_bytes
