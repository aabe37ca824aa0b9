"""A worker's part of a split that stays in its files: a thread reads the next batches' images ahead of their turn."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import torch
from torch import Tensor

from fmfsd.data.loading.shards_in_memory import Order, own_part
from fmfsd.data.shards.index import SetIndex
from fmfsd.data.shards.shard_file import OpenShard
from fmfsd.data.shards.storage import WINDOW_BYTES

MOST_BATCHES = 32
"""That are read ahead, however small they are."""


class ShardsOnDisk:
    """Files whose sizes and headers are those of the index; their SHA-256 sums are not looked at, which would mean
    reading all of them.

    Only labels, ids and a window of images are in memory. DataError, now and later, for a file that can't be read.
    """

    def __init__(self, index: SetIndex, split: str, *, rank: int, world_size: int, device: torch.device) -> None:
        numbers, files = own_part(index, split, rank=rank, world_size=world_size)
        self._shape, self._device, self.side = index.shape, device, index.shape[-1]
        self.numbers, self.sizes = tuple(numbers), tuple(shard.samples for shard in files)
        self._starts = np.cumsum([0, *self.sizes])
        with ExitStack() as stack:
            self._files = [stack.enter_context(closing(OpenShard(index, shard))) for shard in files]
            known = [file.labels_and_ids(file.before_images()) for file in self._files]
            self._opened = stack.pop_all()
        labels, ids = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*known, strict=True))
        self.labels, self.ids = labels.to(device), ids.to(device)
        self._pool = ThreadPoolExecutor(1, "image reader")  # its thread starts with the first task

    def rows(self, chosen: Tensor) -> Tensor:
        return self._on_device(self._read(chosen.cpu()))

    def in_order(self, order: Order) -> Callable[[int], Tensor]:
        ahead = _Ahead(self._pool, self._read, order, self._depth(order))
        return lambda n: self._on_device(ahead.take(n))

    def close(self) -> None:
        """Wait for the thread, then let go of the files."""
        self._pool.shutdown(cancel_futures=True)
        self._opened.close()

    def _depth(self, order: Order) -> int:
        """How many batches fill the window."""
        largest = (len(order[0]) if len(order) else 0) * self._files[0].image_bytes
        return min(MOST_BATCHES, max(2, WINDOW_BYTES // max(1, largest)))

    def _read(self, chosen: Tensor) -> Tensor:
        images = torch.empty((len(chosen), *self._shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        pixels, size = images.view(-1).numpy().data, self._files[0].image_bytes
        places = list(self._places(chosen))
        for file, start in places:
            file.announce(start, size)  # four times as fast where the page cache has not seen the set yet
        for number, (file, start) in enumerate(places):
            file.read_into(pixels[number * size : (number + 1) * size], start)
        return images

    def _places(self, chosen: Tensor) -> Iterator[tuple[OpenShard, int]]:
        """Of each image: its file, and where it starts there."""
        numbers = np.searchsorted(self._starts, chosen.numpy(), side="right") - 1
        within = chosen.numpy() - self._starts[numbers]
        for number, row in zip(numbers.tolist(), within.tolist(), strict=True):
            file = self._files[number]
            yield file, file.images_start + row * file.image_bytes

    def _on_device(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True)


class _Ahead:
    """The next few of `order` as `read` reads them, by the thread of `pool`."""

    def __init__(self, pool: ThreadPoolExecutor, read: Callable[[Tensor], Tensor], order: Order, depth: int) -> None:
        self._pool, self._read, self._order, self._depth = pool, read, order, depth
        self._begun: dict[int, Future[Tensor]] = {}

    def take(self, number: int) -> Tensor:
        """What is `number` in the order; those after it are begun, and what is behind it is forgotten."""
        wanted = range(number, min(number + 1 + self._depth, len(self._order)))
        for other in [each for each in self._begun if each not in wanted]:
            self._begun.pop(other).cancel()
        for each in wanted:
            if each not in self._begun:
                self._begun[each] = self._pool.submit(self._read, self._order[each])
        return self._begun.pop(number).result()
