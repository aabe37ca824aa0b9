"""A worker's shards of a split, streamed from their files: a thread prefetches the images of the next batches."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import torch
from torch import Tensor

from fmfsd.data.loading.shards_in_memory import BatchOrder, select_worker_shards
from fmfsd.data.shards.index import SetIndex
from fmfsd.data.shards.shard_file import ShardReader
from fmfsd.data.shards.storage import PREFETCH_BYTES

MAX_PREFETCHED_BATCHES = 32
"""Maximum number of batches that are prefetched, however small they are."""


class StreamedShards:
    """Shards whose images are read from their files when needed; only labels, ids and prefetched images are in memory.

    Sizes and headers of the files are checked, but not their SHA-256 sums, which would mean reading all of them. The
    constructor and all reads raise DataError for a file that can't be read.
    """

    def __init__(self, index: SetIndex, split: str, *, rank: int, world_size: int, device: torch.device) -> None:
        numbers, files = select_worker_shards(index, split, rank=rank, world_size=world_size)
        self._shape, self._device, self.side = index.shape, device, index.shape[-1]
        self.numbers, self.sizes = tuple(numbers), tuple(shard.samples for shard in files)
        self._starts = np.cumsum([0, *self.sizes])
        with ExitStack() as stack:
            self._files = [stack.enter_context(closing(ShardReader(index, shard))) for shard in files]
            tables = [file.parse_labels_and_ids(file.read_head()) for file in self._files]
            self._open_files = stack.pop_all()
        labels, ids = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*tables, strict=True))
        self.labels, self.ids = labels.to(device), ids.to(device)
        self._pool = ThreadPoolExecutor(1, "image reader")  # its thread starts with the first task

    def read_images(self, indices: Tensor) -> Tensor:
        return self._to_device(self._read(indices.cpu()))

    def batch_reader(self, order: BatchOrder) -> Callable[[int], Tensor]:
        prefetcher = _Prefetcher(self._pool, self._read, order, self._depth(order))
        return lambda n: self._to_device(prefetcher.take(n))

    def close(self) -> None:
        """Wait for the thread, then close the files."""
        self._pool.shutdown(cancel_futures=True)
        self._open_files.close()

    def _depth(self, order: BatchOrder) -> int:
        """Return how many batches are prefetched: as many as fit into the window, at least two."""
        largest = (len(order[0]) if len(order) else 0) * self._files[0].image_bytes
        return min(MAX_PREFETCHED_BATCHES, max(2, PREFETCH_BYTES // max(1, largest)))

    def _read(self, indices: Tensor) -> Tensor:
        images = torch.empty((len(indices), *self._shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        pixels, size = images.view(-1).numpy().data, self._files[0].image_bytes
        locations = list(self._locate(indices))
        for file, start in locations:
            file.prefetch(start, size)  # four times as fast if the set is not in the page cache
        for number, (file, start) in enumerate(locations):
            file.read_into(pixels[number * size : (number + 1) * size], start)
        return images

    def _locate(self, indices: Tensor) -> Iterator[tuple[ShardReader, int]]:
        """Yield each image's file and its byte offset in that file."""
        numbers = np.searchsorted(self._starts, indices.numpy(), side="right") - 1
        rows = indices.numpy() - self._starts[numbers]
        for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
            file = self._files[number]
            yield file, file.images_start + row * file.image_bytes

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True)


class _Prefetcher:
    """Reads the next `depth` batches of `order` with `read`, in the thread of `pool`."""

    def __init__(
        self, pool: ThreadPoolExecutor, read: Callable[[Tensor], Tensor], order: BatchOrder, depth: int
    ) -> None:
        self._pool, self._read, self._order, self._depth = pool, read, order, depth
        self._pending: dict[int, Future[Tensor]] = {}

    def take(self, number: int) -> Tensor:
        """Return batch `number` of the order; start reading the next batches, and cancel all others."""
        window = range(number, min(number + 1 + self._depth, len(self._order)))
        for other in [each for each in self._pending if each not in window]:
            self._pending.pop(other).cancel()
        for each in window:
            if each not in self._pending:
                self._pending[each] = self._pool.submit(self._read, self._order[each])
        return self._pending.pop(number).result()
