"""The training batches of one worker, at any position: (epoch, micro-step) decides everything."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.config.schema import DataConfig
from fmfsd.data.augment.augmentation import STEP_NAMES, Draws, Recipe
from fmfsd.data.augment.autoaugment import Schedule
from fmfsd.data.augment.crop_flip import Normalise, centre
from fmfsd.data.augment.mixup_cutmix import mixed, shares
from fmfsd.data.loading.shards_in_memory import Shards
from fmfsd.data.sampling import shard_epoch


@dataclass(frozen=True)
class EpochTable:
    """An epoch of one worker: row m of each tensor is micro-step m, its columns the samples, shard by shard."""

    sample: Tensor
    """Which of the worker's samples."""
    stored: Callable[[int], Tensor]
    """A micro-step's images, as they are stored."""
    draws: dict[str, Tensor]
    """What augmentation needs, by name."""
    schedules: list[Schedule] = field(default_factory=list)
    """The steps of AutoAugment."""
    partners: "EpochTable | None" = None
    """With what each sample is mixed, under draws of its own."""


class TrainBatches:
    """Augmented micro-batches from the worker's own shards.

    Micro-step m of an epoch takes the next `per_shard` samples of every shard, so the set of samples in a global
    micro-batch is the same for any number of workers, and in their order it is the concatenation over the ranks.
    """

    def __init__(self, shards: Shards, data: DataConfig, *, seed: int, per_shard: int, dtype: torch.dtype) -> None:
        self.shards, self.data, self.seed, self.per_shard = shards, data, seed, per_shard
        self._device = shards.labels.device
        self._recipe = Recipe(data, shards.side, self._device)
        self._normalise = Normalise(*data.channel_statistics, dtype, self._device)
        self._made: tuple[int, EpochTable] | None = None

    def at(self, epoch: int, micro_step: int) -> tuple[Tensor, Tensor]:
        """Images (b, 3, H, W) of `dtype` and labels, b = shards held * per_shard.

        Labels are numbers (b,) or, where samples are mixed, shares (b, K) of `dtype`.
        """
        table = self.table(epoch)
        images, labels = self._augmented(table, micro_step)
        if table.partners is None:
            return images, labels
        other_images, other_labels = self._augmented(table.partners, micro_step)
        draws = {name: values[micro_step] for name, values in table.draws.items()}
        share = draws["share"].to(images.dtype)
        return (
            mixed(images, other_images, draws),
            shares(labels, other_labels, share, num_classes=self.data.num_classes),
        )

    def ids(self, epoch: int, micro_step: int) -> Tensor:
        """Official positions of the samples of a micro-batch, in its order."""
        return self.shards.ids.index_select(0, self.table(epoch).sample[micro_step])

    def table(self, epoch: int) -> EpochTable:
        """The epoch's table; made once an epoch."""
        if self._made is None or self._made[0] != epoch:
            self._made = epoch, self._make_table(epoch)
        return self._made[1]

    def close(self) -> None:
        self.shards.close()

    def _augmented(self, table: EpochTable, micro_step: int) -> tuple[Tensor, Tensor]:
        chosen = table.sample[micro_step]
        draws = {name: values[micro_step] for name, values in table.draws.items()}
        images = self._recipe.applied(table.stored(micro_step), draws, table.schedules, micro_step)
        return self._normalise(images), self.shards.labels.index_select(0, chosen)

    def _make_table(self, epoch: int) -> EpochTable:
        starts = np.cumsum([0, *self.shards.sizes[:-1]])
        drawn = []
        for start, number, size in zip(starts, self.shards.numbers, self.shards.sizes, strict=True):
            order = shard_epoch(self.seed, epoch, number, size)
            drawn.append({"sample": start + order.permutation, **self._recipe.drawn(self.seed, epoch, number, order)})
        partners = None
        if self._recipe.mixes:
            partners = self._arranged([_at(draws["partner"], draws) for draws in drawn], None)
        return self._arranged(drawn, partners)

    def _arranged(self, drawn: list[Draws], partners: EpochTable | None) -> EpochTable:
        """Each shard's values by position to (micro-steps, samples of a micro-batch)."""
        micro_steps = min(self.shards.sizes) // self.per_shard

        def rows(name: str) -> NDArray[Any]:
            parts = [draws[name][: micro_steps * self.per_shard].reshape(micro_steps, -1) for draws in drawn]
            return np.concatenate(parts, axis=1)

        def on_device(name: str) -> Tensor:
            return torch.from_numpy(rows(name)).to(self._device)

        steps = [name for name in STEP_NAMES if name in drawn[0]]
        draws = {name: on_device(name) for name in drawn[0] if name not in ("sample", *steps)}
        schedules = [Schedule.of(rows(name).astype(np.int64), self._device) for name in steps]
        stored = self.shards.in_order(torch.from_numpy(rows("sample")))
        return EpochTable(on_device("sample"), stored, draws, schedules, partners)


def _at(positions: NDArray[Any], draws: Draws) -> Draws:
    """What is drawn for these positions, in their order."""
    chosen = positions.astype(np.int64)
    return {name: values[chosen] for name, values in draws.items()}


class EvaluationBatches:
    """Every sample of a worker's part of a split, once, without augmentation; of larger images the centre.

    `largest_part` is the size of the largest worker's part: all workers get the same number of batches, so that they
    can talk after each; a worker's last ones may be short or empty.
    """

    def __init__(self, shards: Shards, data: DataConfig, *, batch: int, largest_part: int, dtype: torch.dtype) -> None:
        self.shards, self.batch, self._side = shards, batch, data.size
        self.num_classes = data.num_classes
        self._normalise = Normalise(*data.channel_statistics, dtype, shards.labels.device)
        own = torch.arange(len(shards.labels))
        self._rows = [slice(start, start + batch) for start in range(0, largest_part, batch)]
        self._stored = shards.in_order([own[rows] for rows in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        return self.shards.labels.device

    def stored(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of images as they are stored, uint8 of the size that the network sees, their labels and ids."""
        rows = self._rows[number]
        return centre(self._stored(number), self._side), self.shards.labels[rows], self.shards.ids[rows]

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        images, labels, _ = self.stored(number)
        return self._normalise(images), labels

    def close(self) -> None:
        self.shards.close()
