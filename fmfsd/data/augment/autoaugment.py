"""AutoAugment on whole batches of uint8 images on their device, with random draws passed in.

Each kind of operation is one table lookup or one blend for all images that get it, whatever its strength, so a batch
takes about a hundred small kernels and no host synchronisation. Results equal torchvision.transforms.autoaugment on
single images bit for bit: arithmetic is in the same order, in fp32.

B batch, C channels (red, green, blue), H height, W width, P pixels, L levels (256).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.data.augment.autoaugment_policy import FIRST_OF_KIND, KINDS, OPERATIONS, Operation

LEVELS = 256


@dataclass(frozen=True)
class AutoAugmentSchedule:
    """One AutoAugment step of an epoch; row m of each array is micro-step m.

    `order` has the samples of a micro-batch sorted by operation, `operations` their operations in that order, both on
    the device; `bounds`, on the host, has the start of each kind in that order, and the end.
    """

    order: Tensor
    operations: Tensor
    bounds: NDArray[np.int64]

    @classmethod
    def from_operations(cls, operations: NDArray[np.int64], device: torch.device) -> "AutoAugmentSchedule":
        """Return the schedule of operations, given by their numbers (micro-steps, samples)."""
        order = np.argsort(operations, axis=1, kind="stable")
        in_order = np.take_along_axis(operations, order, axis=1)
        limits = [*FIRST_OF_KIND.values(), len(OPERATIONS)]
        bounds = np.stack([(operations < limit).sum(axis=1) for limit in limits], axis=1)
        return cls(torch.from_numpy(order).to(device), torch.from_numpy(in_order).to(device), bounds)


class AutoAugment:
    """Applies the policy to images of `side` pixels; pixels from outside of an image get the value `fill`."""

    def __init__(self, side: int, *, fill: int, device: torch.device) -> None:
        self._fill = fill
        self._sources = torch.stack([source_pixels(each, side) for each in _of_kind("geometric")]).to(device)
        self._levels = torch.stack([_lookup_levels(each) for each in _of_kind("lookup")]).to(device)
        self._apply: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "geometric": lambda images, numbers: move_pixels(
                images, self._sources.index_select(0, numbers), fill=self._fill
            ),
            "lookup": lambda images, numbers: map_levels(images, self._levels.index_select(0, numbers).unsqueeze(1)),
            "autocontrast": lambda images, _: map_levels(images, autocontrast_levels(images)),
            "equalize": lambda images, _: map_levels(images, equalize_levels(images)),
            "contrast": self._blend_kind("contrast", device, lambda images, *by: adjust_contrast(images, *by)),
            "color": self._blend_kind("color", device, lambda images, *by: blend(images, to_grayscale(images), *by)),
            "sharpness": self._blend_kind("sharpness", device, lambda images, *by: blend(images, smooth(images), *by)),
        }

    def __call__(self, images_BCHW: Tensor, schedule: AutoAugmentSchedule, micro_step: int) -> Tensor:
        """Apply the step to `images_BCHW` in place, and return it."""
        order, operations = schedule.order[micro_step], schedule.operations[micro_step]
        for kind, (start, end) in zip(KINDS, pairwise(schedule.bounds[micro_step].tolist()), strict=True):
            if kind in self._apply and start < end:
                rows, numbers = order[start:end], operations[start:end] - FIRST_OF_KIND[kind]
                images_BCHW.index_copy_(0, rows, self._apply[kind](images_BCHW.index_select(0, rows), numbers))
        return images_BCHW

    def _blend_kind(
        self, kind: str, device: torch.device, blend_images: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that applies the operations of a kind: a blend with the ratio of each operation."""
        ratios = [1.0 + each.sign * _magnitude(0.0, 0.9, each.level) for each in _of_kind(kind)]
        weights = torch.tensor([ratios, [1.0 - ratio for ratio in ratios]], device=device)

        def apply(images: Tensor, numbers: Tensor) -> Tensor:
            own, other = weights.index_select(1, numbers).view(2, -1, 1, 1, 1)
            return blend_images(images, own, other)

        return apply


def _of_kind(kind: str) -> list[Operation]:
    return [each for each in OPERATIONS if each.name in KINDS[kind]]


def _magnitude(start: float, end: float, level: int) -> float:
    """Return the `level`-th of ten evenly spaced values from `start` to `end`, in fp32."""
    return float(torch.linspace(start, end, 10)[level])


def move_pixels(images_BCHW: Tensor, sources_BP: Tensor, *, fill: int) -> Tensor:
    """Return images whose pixels come from their source pixels, or are `fill` where the source is -1."""
    sources_BCP = sources_BP.unsqueeze(1).expand(-1, images_BCHW.shape[1], -1)
    pixels = images_BCHW.flatten(2).gather(2, sources_BCP.clamp(min=0))
    return pixels.masked_fill(sources_BCP < 0, fill).view(images_BCHW.shape)


def source_pixels(operation: Operation, side: int) -> Tensor:
    """Return (P,): for each pixel of a square image, the index of the nearest source pixel; -1: outside."""
    positions = torch.linspace(0.5 - side / 2, side / 2 - 0.5, side)
    target = torch.stack([*torch.meshgrid(positions, positions, indexing="xy"), torch.ones(side, side)], dim=-1)
    to_source = torch.tensor(_affine_matrix(operation, side)).view(1, 2, 3).transpose(1, 2) / (side / 2)
    source = target.view(1, side * side, 3).bmm(to_source).view(1, side, side, 2)
    numbers = torch.arange(1.0, side * side + 1).view(1, 1, side, side)
    indices = F.grid_sample(numbers, source, mode="nearest", padding_mode="zeros", align_corners=False)
    return indices.flatten().long() - 1


def _affine_matrix(operation: Operation, side: int) -> list[float]:
    """Return the 2x3 matrix, row by row, from target to source positions, both relative to the centre."""
    if operation.name == "ShearY":
        slope = math.tan(math.atan(operation.sign * _magnitude(0.0, 0.3, operation.level)))
        return [1.0, 0.0, 0.0, slope, 1.0, slope * side / 2]
    if operation.name == "Rotate":
        angle = math.radians(operation.sign * _magnitude(0.0, 30.0, operation.level))
        return [math.cos(angle), -math.sin(angle), 0.0, math.sin(angle), math.cos(angle), 0.0]
    pixels = operation.sign * float(int(_magnitude(0.0, 150.0 / 331.0 * side, operation.level)))
    horizontal = operation.name == "TranslateX"
    return [1.0, 0.0, -pixels if horizontal else 0.0, 0.0, 1.0, 0.0 if horizontal else -pixels]


def map_levels(images_BCHW: Tensor, levels_BCL: Tensor) -> Tensor:
    """Replace each value by its entry in the image's table, of each channel or of all channels (C = 1)."""
    batch, channels = images_BCHW.shape[:2]
    values = images_BCHW.flatten(2).long()
    return levels_BCL.expand(batch, channels, LEVELS).gather(2, values).view(images_BCHW.shape)


def _lookup_levels(operation: Operation) -> Tensor:
    """Return the table (L,) of the new values."""
    levels = torch.arange(LEVELS, dtype=torch.uint8)
    if operation.name == "Invert":
        return 255 - levels
    if operation.name == "Solarize":
        return torch.where(levels >= _magnitude(255.0, 0.0, operation.level), 255 - levels, levels)
    if operation.name == "Posterize":
        bits = 8 - round(operation.level * 4 / 9)
        return levels & (0xFF << (8 - bits) & 0xFF)
    return _to_uint8((1.0 + operation.sign * _magnitude(0.0, 0.9, operation.level)) * levels)


def autocontrast_levels(images_BCHW: Tensor) -> Tensor:
    """Return tables (B, C, L) that stretch each channel to the range 0 to 255; constant channels are unchanged."""
    lowest, highest = (extreme(dim=(2, 3)).float() for extreme in (images_BCHW.amin, images_BCHW.amax))
    scale = 255 / (highest - lowest)
    flat = scale.isinf()
    lowest, scale = lowest.masked_fill(flat, 0.0), scale.masked_fill(flat, 1.0)
    return _to_uint8((_all_levels(images_BCHW) - lowest.unsqueeze(2)) * scale.unsqueeze(2))


def equalize_levels(images_BCHW: Tensor) -> Tensor:
    """Return tables (B, C, L) that equalize each channel's histogram, in integer arithmetic."""
    values = images_BCHW.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], LEVELS).scatter_add_(2, values, torch.ones_like(values))
    highest_count = counts.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - highest_count) // 255
    below = counts.cumsum(dim=2) - counts
    levels = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    levels[:, :, 0] = 0
    return torch.where(step > 0, levels, _all_levels(images_BCHW).long()).to(torch.uint8)


def adjust_contrast(images_BCHW: Tensor, own_B111: Tensor, other_B111: Tensor) -> Tensor:
    """Blend each image with the mean of its grayscale values."""
    pixels = images_BCHW.shape[-2] * images_BCHW.shape[-1]
    means_B11 = to_grayscale(images_BCHW).sum(dim=(2, 3), dtype=torch.int64).unsqueeze(2).float() / pixels
    levels_B1L = _to_uint8(own_B111.squeeze(3) * _all_levels(images_BCHW) + other_B111.squeeze(3) * means_B11)
    return map_levels(images_BCHW, levels_B1L)


def blend(images_BCHW: Tensor, others: Tensor, own_B111: Tensor, other_B111: Tensor) -> Tensor:
    return _to_uint8(own_B111 * images_BCHW + other_B111 * others)


def to_grayscale(images_BCHW: Tensor) -> Tensor:
    """Return (B, 1, H, W) uint8: luma of ITU-R BT.601."""
    red, green, blue = images_BCHW.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8).unsqueeze(1)


def smooth(images_BCHW: Tensor) -> Tensor:
    """Smooth images: weighted mean of each pixel (weight 5) and its eight neighbours; the border is unchanged."""
    values = images_BCHW.short()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * values[:, :, 1:-1, 1:-1]
    result = images_BCHW.clone()
    result[:, :, 1:-1, 1:-1] = ((2 * sums + 13) // 26).to(torch.uint8)
    return result


def _all_levels(like: Tensor) -> Tensor:
    return torch.arange(LEVELS, dtype=torch.float32, device=like.device)


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
