"""The recipe that a config asks for: what is drawn for each sample of a shard, and what is done with a batch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.config.schema import DataConfig
from fmfsd.data.augment import mixup_cutmix, resized_crop
from fmfsd.data.augment.autoaugment import AutoAugment, Schedule
from fmfsd.data.augment.autoaugment_policy import STEPS, operations
from fmfsd.data.augment.crop_flip import centre, cutout, flip, random_crop
from fmfsd.data.sampling import ShardEpoch, integers, stream_words

Draws = dict[str, NDArray[Any]]
_POLICY, _PARTS, _PARTNERS = 1, 2, 3
"""Streams of random words; each is drawn only where it is used, so no switch changes what another draws."""


class Recipe:
    """For images of `stored` pixels a side, which are seen at `data.size`, or as they are if they are smaller."""

    def __init__(self, data: DataConfig, stored: int, device: torch.device) -> None:
        self._data, self._stored, self._side = data, stored, min(stored, data.size)
        self._policy = AutoAugment(self._side, fill=data.crop_fill, device=device) if data.autoaugment else None

    @property
    def mixes(self) -> bool:
        return bool(self._data.mixup or self._data.cutmix)

    def drawn(self, seed: int, epoch: int, shard: int, order: ShardEpoch) -> Draws:
        """Row p of each is for the sample at position p of the shard's epoch."""

        def words(stream: int, count: int) -> NDArray[np.uint64]:
            return stream_words(seed, epoch, shard, stream=stream, samples=len(order.words), words=count)

        draws = self._basic(order.words)
        if self._data.autoaugment:
            draws |= dict(zip(STEP_NAMES, operations(words(_POLICY, 1)[:, 0]), strict=True))
        if self._data.resized_crop:
            draws |= resized_crop.part_draws(words(_PARTS, resized_crop.WORDS), self._stored)
        if self.mixes:
            alphas = {"mixup": self._data.mixup, "cutmix": self._data.cutmix}
            draws |= mixup_cutmix.mixing_draws(words(_PARTNERS, mixup_cutmix.WORDS), **alphas, side=self._side)
        return draws

    def applied(self, images: Tensor, draws: dict[str, Tensor], schedules: list[Schedule], micro_step: int) -> Tensor:
        """uint8 images (b, 3, S, S) of uint8 images as they are stored; the latter may be changed."""
        data = self._data
        if data.resized_crop:
            part = (draws[f"part_{name}"] for name in ("top", "left", "height", "width"))
            images = resized_crop.resized_crop(images, *part, size=data.size)
        else:
            images = centre(images, self._side)
        if data.flip:
            images = flip(images, draws["mirrored"])
        if data.crop_padding:
            images = random_crop(images, draws["top"], draws["left"], padding=data.crop_padding, fill=data.crop_fill)
        for schedule in schedules:
            assert self._policy is not None
            images = self._policy(images, schedule, micro_step)
        if data.cutout:
            images = cutout(images, draws["row"], draws["column"], side=data.cutout)
        return images

    def _basic(self, words: NDArray[np.uint64]) -> Draws:
        offsets = 2 * self._data.crop_padding + 1
        return {
            "top": integers(words[:, 0], offsets, field=0),
            "left": integers(words[:, 0], offsets, field=1),
            "mirrored": integers(words[:, 0], 2, field=2).astype(bool),
            "row": integers(words[:, 1], self._side, field=0),
            "column": integers(words[:, 1], self._side, field=1),
        }


STEP_NAMES = tuple(f"operation{step}" for step in range(STEPS))
"""The draws that become schedules."""
