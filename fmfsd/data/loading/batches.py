"""Training and evaluation batches of one worker; a training batch depends only on (epoch, micro-step)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.config.schema import DataConfig
from fmfsd.data.augment.augmentation import STEP_NAMES, Augmentation, Draws
from fmfsd.data.augment.autoaugment import AutoAugmentSchedule
from fmfsd.data.augment.crop_flip_cutout import Normalise, centre_crop
from fmfsd.data.augment.mixup_cutmix import mix_images, mix_labels
from fmfsd.data.loading.shards_in_memory import Shards
from fmfsd.data.sampling import draw_shard_epoch


@dataclass(frozen=True)
class EpochTable:
    """One worker's epoch. Row m of each tensor is micro-step m; the columns are its samples, shard by shard."""

    sample: Tensor
    """Indices of the worker's samples."""
    read_images: Callable[[int], Tensor]
    """Returns a micro-step's images as they are stored."""
    draws: dict[str, Tensor]
    """Random draws for augmentation, by name."""
    schedules: list[AutoAugmentSchedule] = field(default_factory=list)
    """The steps of AutoAugment."""
    partners: "EpochTable | None" = None
    """The partners with which samples are mixed, with their own draws."""


class TrainBatches:
    """Augmented micro-batches from the worker's shards.

    Micro-step m of an epoch takes the next `per_shard` samples of every shard. The global micro-batch, which is the
    concatenation over the ranks, is therefore the same for any number of workers.
    """

    def __init__(self, shards: Shards, data: DataConfig, *, seed: int, per_shard: int, dtype: torch.dtype) -> None:
        self.shards, self.data, self.seed, self.per_shard = shards, data, seed, per_shard
        self._device = shards.labels.device
        self._augmentation = Augmentation(data, shards.side, self._device)
        self._normalise = Normalise(*data.channel_statistics, dtype, self._device)
        self._cached_table: tuple[int, EpochTable] | None = None

    def load_batch(self, epoch: int, micro_step: int) -> tuple[Tensor, Tensor]:
        """Return images (b, 3, H, W) of `dtype` and labels, b = the worker's shards * per_shard.

        Labels are class numbers (b,) or, with MixUp or CutMix, soft labels (b, K) of `dtype`.
        """
        table = self.epoch_table(epoch)
        images, labels = self._augment(table, micro_step)
        if table.partners is None:
            return images, labels
        other_images, other_labels = self._augment(table.partners, micro_step)
        draws = {name: values[micro_step] for name, values in table.draws.items()}
        share = draws["share"].to(images.dtype)
        return (
            mix_images(images, other_images, draws),
            mix_labels(labels, other_labels, share, num_classes=self.data.num_classes),
        )

    def ids(self, epoch: int, micro_step: int) -> Tensor:
        """Return the ids (positions in the official files) of the samples of a micro-batch."""
        return self.shards.ids.index_select(0, self.epoch_table(epoch).sample[micro_step])

    def epoch_table(self, epoch: int) -> EpochTable:
        """Return the epoch's table; it is built once per epoch."""
        if self._cached_table is None or self._cached_table[0] != epoch:
            self._cached_table = epoch, self._build_table(epoch)
        return self._cached_table[1]

    def close(self) -> None:
        self.shards.close()

    def _augment(self, table: EpochTable, micro_step: int) -> tuple[Tensor, Tensor]:
        indices = table.sample[micro_step]
        draws = {name: values[micro_step] for name, values in table.draws.items()}
        images = self._augmentation.apply(table.read_images(micro_step), draws, table.schedules, micro_step)
        return self._normalise(images), self.shards.labels.index_select(0, indices)

    def _build_table(self, epoch: int) -> EpochTable:
        starts = np.cumsum([0, *self.shards.sizes[:-1]])
        draws_by_shard = []
        for start, number, size in zip(starts, self.shards.numbers, self.shards.sizes, strict=True):
            order = draw_shard_epoch(self.seed, epoch, number, size)
            draws = self._augmentation.draw(self.seed, epoch, number, order)
            draws_by_shard.append({"sample": start + order.permutation, **draws})
        partners = None
        if self._augmentation.mixes:
            partners = self._arrange([_take(draws["partner"], draws) for draws in draws_by_shard], None)
        return self._arrange(draws_by_shard, partners)

    def _arrange(self, draws_by_shard: list[Draws], partners: EpochTable | None) -> EpochTable:
        """Rearrange each shard's values by position to rows by micro-step: (micro-steps, samples of a micro-batch)."""
        micro_steps = min(self.shards.sizes) // self.per_shard

        def rows(name: str) -> NDArray[Any]:
            parts = [draws[name][: micro_steps * self.per_shard].reshape(micro_steps, -1) for draws in draws_by_shard]
            return np.concatenate(parts, axis=1)

        def on_device(name: str) -> Tensor:
            return torch.from_numpy(rows(name)).to(self._device)

        steps = [name for name in STEP_NAMES if name in draws_by_shard[0]]
        draws = {name: on_device(name) for name in draws_by_shard[0] if name not in ("sample", *steps)}
        schedules = [AutoAugmentSchedule.from_operations(rows(name).astype(np.int64), self._device) for name in steps]
        stored = self.shards.batch_reader(torch.from_numpy(rows("sample")))
        return EpochTable(on_device("sample"), stored, draws, schedules, partners)


def _take(positions: NDArray[Any], draws: Draws) -> Draws:
    """Return the draws of these positions, in their order."""
    rows = positions.astype(np.int64)
    return {name: values[rows] for name, values in draws.items()}


class EvaluationBatches:
    """Every sample of a worker's shards of a split, once, without augmentation; larger images are centre-cropped.

    `largest_part` is the largest number of samples of any worker. All workers get the same number of batches, so that
    they can make collective calls after each; a worker's last batches may be short or empty.
    """

    def __init__(self, shards: Shards, data: DataConfig, *, batch: int, largest_part: int, dtype: torch.dtype) -> None:
        self.shards, self.batch, self._side = shards, batch, data.size
        self.num_classes = data.num_classes
        self._normalise = Normalise(*data.channel_statistics, dtype, shards.labels.device)
        indices = torch.arange(len(shards.labels))
        self._rows = [slice(start, start + batch) for start in range(0, largest_part, batch)]
        self._read_images = shards.batch_reader([indices[rows] for rows in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        return self.shards.labels.device

    def load_raw_batch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch without normalisation: uint8 images of the network's input size, labels and ids."""
        rows = self._rows[number]
        return centre_crop(self._read_images(number), self._side), self.shards.labels[rows], self.shards.ids[rows]

    def load_batch(self, number: int) -> tuple[Tensor, Tensor]:
        images, labels, _ = self.load_raw_batch(number)
        return self._normalise(images), labels

    def close(self) -> None:
        self.shards.close()
