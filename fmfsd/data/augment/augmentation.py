"""The augmentation of a config: random draws for the samples of a shard, and their application to a batch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.config.schema import DataConfig
from fmfsd.data.augment import mixup_cutmix, resized_crop
from fmfsd.data.augment.autoaugment import AutoAugment, AutoAugmentSchedule
from fmfsd.data.augment.autoaugment_policy import STEPS, draw_operations
from fmfsd.data.augment.crop_flip_cutout import centre_crop, cutout, horizontal_flip, random_crop
from fmfsd.data.sampling import ShardEpoch, draw_stream, to_integers

Draws = dict[str, NDArray[Any]]
_POLICY, _CROPS, _PARTNERS = 1, 2, 3
"""Random streams. Each augmentation has its own, so that switching one on or off does not change another's draws."""


class Augmentation:
    """The augmentation of images that are stored with `stored` pixels a side and cropped to `data.size` if larger."""

    def __init__(self, data: DataConfig, stored: int, device: torch.device) -> None:
        self._data, self._stored, self._side = data, stored, min(stored, data.size)
        self._policy = AutoAugment(self._side, fill=data.crop_fill, device=device) if data.autoaugment else None

    @property
    def mixes(self) -> bool:
        return bool(self._data.mixup or self._data.cutmix)

    def draw(self, seed: int, epoch: int, shard: int, order: ShardEpoch) -> Draws:
        """Draw the augmentation parameters of a shard's epoch; row p of each array is for the sample at position p."""

        def bits(stream: int, count: int) -> NDArray[np.uint64]:
            return draw_stream(seed, epoch, shard, stream=stream, samples=len(order.random_bits), values=count)

        draws = self._draw_crop_and_flip(order.random_bits)
        if self._data.autoaugment:
            draws |= dict(zip(STEP_NAMES, draw_operations(bits(_POLICY, 1)[:, 0]), strict=True))
        if self._data.resized_crop:
            draws |= resized_crop.draw_crop_boxes(bits(_CROPS, resized_crop.VALUES_PER_SAMPLE), self._stored)
        if self.mixes:
            alphas = {"mixup": self._data.mixup, "cutmix": self._data.cutmix}
            draws |= mixup_cutmix.draw_mixing(
                bits(_PARTNERS, mixup_cutmix.VALUES_PER_SAMPLE), **alphas, side=self._side
            )
        return draws

    def apply(
        self, images: Tensor, draws: dict[str, Tensor], schedules: list[AutoAugmentSchedule], micro_step: int
    ) -> Tensor:
        """Augment stored uint8 images and return uint8 images (b, 3, S, S). The input may be modified in place."""
        data = self._data
        if data.resized_crop:
            box = (draws[f"part_{name}"] for name in ("top", "left", "height", "width"))
            images = resized_crop.resized_crop(images, *box, size=data.size)
        else:
            images = centre_crop(images, self._side)
        if data.flip:
            images = horizontal_flip(images, draws["mirrored"])
        if data.crop_padding:
            images = random_crop(images, draws["top"], draws["left"], padding=data.crop_padding, fill=data.crop_fill)
        for schedule in schedules:
            assert self._policy is not None
            images = self._policy(images, schedule, micro_step)
        if data.cutout:
            images = cutout(images, draws["row"], draws["column"], side=data.cutout)
        return images

    def _draw_crop_and_flip(self, bits: NDArray[np.uint64]) -> Draws:
        offsets = 2 * self._data.crop_padding + 1
        return {
            "top": to_integers(bits[:, 0], offsets, field=0),
            "left": to_integers(bits[:, 0], offsets, field=1),
            "mirrored": to_integers(bits[:, 0], 2, field=2).astype(bool),
            "row": to_integers(bits[:, 1], self._side, field=0),
            "column": to_integers(bits[:, 1], self._side, field=1),
        }


STEP_NAMES = tuple(f"operation{step}" for step in range(STEPS))
"""Names of the AutoAugment draws, which become schedules."""
