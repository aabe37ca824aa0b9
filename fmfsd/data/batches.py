"""The training batches of one worker, at any position: (epoch, micro-step) decides everything."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.config.schema import DataConfig
from fmfsd.data.augment import Normalise, cutout, flip, random_crop
from fmfsd.data.order import integers, shard_epoch
from fmfsd.data.shards import OwnShards


@dataclass(frozen=True)
class EpochTable:
    """An epoch of one worker: row m of each tensor is micro-step m, its columns the samples, shard by shard."""

    sample: Tensor
    """Which of the worker's samples."""
    draws: dict[str, Tensor]
    """What augmentation needs, by name."""


class TrainBatches:
    """Augmented micro-batches from the worker's own shards.

    Micro-step m of an epoch takes the next `per_shard` samples of every shard, so the set of samples in a global
    micro-batch is the same for any number of workers, and in their order it is the concatenation over the ranks.
    """

    def __init__(self, shards: OwnShards, data: DataConfig, *, seed: int, per_shard: int, dtype: torch.dtype) -> None:
        self.shards, self.data, self.seed, self.per_shard = shards, data, seed, per_shard
        self._normalise = Normalise(data.mean, data.std, dtype, shards.images.device)
        self._epoch, self._table = -1, EpochTable(torch.empty(0), {})

    def at(self, epoch: int, micro_step: int) -> tuple[Tensor, Tensor]:
        """Images (b, 3, H, W) of `dtype` and labels (b,), b = shards held * per_shard."""
        table = self.table(epoch)
        chosen = table.sample[micro_step]
        draws = {name: values[micro_step] for name, values in table.draws.items()}
        images = self._augment(self.shards.images.index_select(0, chosen), draws)
        return self._normalise(images), self.shards.labels.index_select(0, chosen)

    def ids(self, epoch: int, micro_step: int) -> Tensor:
        """Official positions of the samples of a micro-batch, in its order."""
        return self.shards.ids.index_select(0, self.table(epoch).sample[micro_step])

    def table(self, epoch: int) -> EpochTable:
        """The epoch's table; made once an epoch."""
        if self._epoch != epoch:
            self._epoch, self._table = epoch, self._make_table(epoch)
        return self._table

    def _augment(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        if self.data.flip:
            images = flip(images, draws["mirrored"])
        if self.data.crop_padding:
            images = random_crop(
                images, draws["top"], draws["left"], padding=self.data.crop_padding, fill=self.data.crop_fill
            )
        if self.data.cutout:
            images = cutout(images, draws["row"], draws["column"], side=self.data.cutout)
        return images

    def _make_table(self, epoch: int) -> EpochTable:
        micro_steps = min(self.shards.sizes) // self.per_shard
        orders = [
            shard_epoch(self.seed, epoch, number, size)
            for number, size in zip(self.shards.numbers, self.shards.sizes, strict=True)
        ]
        starts = np.cumsum([0, *self.shards.sizes[:-1]])
        samples = [start + order.permutation for start, order in zip(starts, orders, strict=True)]
        draws = [self._draw(order.words) for order in orders]
        device = self.shards.images.device

        def arranged(per_shard_values: list[NDArray[np.int64]]) -> Tensor:
            """Each shard's values by position to (micro-steps, samples of a micro-batch)."""
            rows = [values[: micro_steps * self.per_shard].reshape(micro_steps, -1) for values in per_shard_values]
            return torch.from_numpy(np.concatenate(rows, axis=1)).to(device)

        return EpochTable(arranged(samples), {name: arranged([draw[name] for draw in draws]) for name in draws[0]})

    def _draw(self, words: NDArray[np.uint64]) -> dict[str, NDArray[np.int64]]:
        height, width = self.shards.images.shape[-2:]
        offsets = 2 * self.data.crop_padding + 1
        return {
            "top": integers(words[:, 0], offsets, field=0),
            "left": integers(words[:, 0], offsets, field=1),
            "mirrored": integers(words[:, 0], 2, field=2).astype(bool),
            "row": integers(words[:, 1], height, field=0),
            "column": integers(words[:, 1], width, field=1),
        }


class EvaluationBatches:
    """Every sample of a worker's part of a split, once, without augmentation.

    `largest_part` is the size of the largest worker's part: all workers get the same number of batches, so that they
    can talk after each; a worker's last ones may be short or empty.
    """

    def __init__(
        self, shards: OwnShards, data: DataConfig, *, batch: int, largest_part: int, dtype: torch.dtype
    ) -> None:
        self.shards, self.batch = shards, batch
        self._normalise = Normalise(data.mean, data.std, dtype, shards.images.device)
        self._number = -(-largest_part // batch)

    def __len__(self) -> int:
        return self._number

    @property
    def device(self) -> torch.device:
        return self.shards.images.device

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        rows = slice(number * self.batch, (number + 1) * self.batch)
        return self._normalise(self.shards.images[rows]), self.shards.labels[rows]
