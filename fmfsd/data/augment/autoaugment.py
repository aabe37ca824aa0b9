"""AutoAugment on whole batches of uint8 images, on the device that holds them: what is drawn comes from outside.

Each operation is a table that is looked up, or one blend, for all images that get one of its kind, whatever its
strength; so a batch takes a hundred small kernels and no host synchronisation. Every image is what
torchvision.transforms.autoaugment makes of its tensor, bit for bit: arithmetic is in its order, in fp32.

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

from fmfsd.data.augment.autoaugment_policy import FIRST, KINDS, OPERATIONS, Operation

LEVELS = 256


@dataclass(frozen=True)
class Schedule:
    """One step of an epoch's AutoAugment: row m of each is micro-step m.

    `order` are the samples of a micro-batch by operation, `operations` what they get, in that order, both on the
    device; `bounds`, on the host, where each kind begins, and the end.
    """

    order: Tensor
    operations: Tensor
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, operations: NDArray[np.int64], device: torch.device) -> "Schedule":
        """From the operations' numbers (micro-steps, samples)."""
        order = np.argsort(operations, axis=1, kind="stable")
        in_order = np.take_along_axis(operations, order, axis=1)
        limits = [*FIRST.values(), len(OPERATIONS)]
        bounds = np.stack([(operations < limit).sum(axis=1) for limit in limits], axis=1)
        return cls(torch.from_numpy(order).to(device), torch.from_numpy(in_order).to(device), bounds)


class AutoAugment:
    """Holds the tables for images of `side` pixels; what comes from outside of an image has the value `fill`."""

    def __init__(self, side: int, *, fill: int, device: torch.device) -> None:
        self._fill = fill
        self._sources = torch.stack([sources(each, side) for each in _of("moved")]).to(device)
        self._levels = torch.stack([_new_levels(each) for each in _of("mapped")]).to(device)
        self._apply: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "moved": lambda images, numbers: moved(images, self._sources.index_select(0, numbers), fill=self._fill),
            "mapped": lambda images, numbers: mapped(images, self._levels.index_select(0, numbers).unsqueeze(1)),
            "stretched": lambda images, _: mapped(images, stretched_levels(images)),
            "equalised": lambda images, _: mapped(images, equalised_levels(images)),
            "contrasted": self._blended("contrasted", device, lambda images, *by: contrasted(images, *by)),
            "coloured": self._blended("coloured", device, lambda images, *by: blended(images, grey(images), *by)),
            "sharpened": self._blended("sharpened", device, lambda images, *by: blended(images, smooth(images), *by)),
        }

    def __call__(self, images_BCHW: Tensor, schedule: Schedule, micro_step: int) -> Tensor:
        """`images_BCHW`, changed in place."""
        order, operations = schedule.order[micro_step], schedule.operations[micro_step]
        for kind, (start, end) in zip(KINDS, pairwise(schedule.bounds[micro_step].tolist()), strict=True):
            if kind in self._apply and start < end:
                rows, numbers = order[start:end], operations[start:end] - FIRST[kind]
                images_BCHW.index_copy_(0, rows, self._apply[kind](images_BCHW.index_select(0, rows), numbers))
        return images_BCHW

    def _blended(
        self, kind: str, device: torch.device, make: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        ratios = [1.0 + each.sign * _step(0.0, 0.9, each.level) for each in _of(kind)]
        shares = torch.tensor([ratios, [1.0 - ratio for ratio in ratios]], device=device)

        def apply(images: Tensor, numbers: Tensor) -> Tensor:
            own, other = shares.index_select(1, numbers).view(2, -1, 1, 1, 1)
            return make(images, own, other)

        return apply


def _of(kind: str) -> list[Operation]:
    return [each for each in OPERATIONS if each.name in KINDS[kind]]


def _step(start: float, end: float, level: int) -> float:
    """The `level`-th of ten from `start` to `end`, as fp32 has it."""
    return float(torch.linspace(start, end, 10)[level])


def moved(images_BCHW: Tensor, sources_BP: Tensor, *, fill: int) -> Tensor:
    """Each pixel from its source, or `fill` where that is -1."""
    sources_BCP = sources_BP.unsqueeze(1).expand(-1, images_BCHW.shape[1], -1)
    taken = images_BCHW.flatten(2).gather(2, sources_BCP.clamp(min=0))
    return taken.masked_fill(sources_BCP < 0, fill).view(images_BCHW.shape)


def sources(operation: Operation, side: int) -> Tensor:
    """(P,): where each pixel of a square image comes from, the nearest to its place before the move; -1: outside."""
    places = torch.linspace(0.5 - side / 2, side / 2 - 0.5, side)
    here = torch.stack([*torch.meshgrid(places, places, indexing="xy"), torch.ones(side, side)], dim=-1)
    to_source = torch.tensor(_matrix(operation, side)).view(1, 2, 3).transpose(1, 2) / (side / 2)
    there = here.view(1, side * side, 3).bmm(to_source).view(1, side, side, 2)
    numbers = torch.arange(1.0, side * side + 1).view(1, 1, side, side)
    found = F.grid_sample(numbers, there, mode="nearest", padding_mode="zeros", align_corners=False)
    return found.flatten().long() - 1


def _matrix(operation: Operation, side: int) -> list[float]:
    """From a place, counted from the centre, to the one that it comes from: two rows of three."""
    if operation.name == "ShearY":
        slope = math.tan(math.atan(operation.sign * _step(0.0, 0.3, operation.level)))
        return [1.0, 0.0, 0.0, slope, 1.0, slope * side / 2]
    if operation.name == "Rotate":
        angle = math.radians(operation.sign * _step(0.0, 30.0, operation.level))
        return [math.cos(angle), -math.sin(angle), 0.0, math.sin(angle), math.cos(angle), 0.0]
    pixels = operation.sign * float(int(_step(0.0, 150.0 / 331.0 * side, operation.level)))
    across = operation.name == "TranslateX"
    return [1.0, 0.0, -pixels if across else 0.0, 0.0, 1.0, 0.0 if across else -pixels]


def mapped(images_BCHW: Tensor, levels_BCL: Tensor) -> Tensor:
    """Each value replaced by what stands for it in its image's levels, of each channel or of all."""
    batch, channels = images_BCHW.shape[:2]
    values = images_BCHW.flatten(2).long()
    return levels_BCL.expand(batch, channels, LEVELS).gather(2, values).view(images_BCHW.shape)


def _new_levels(operation: Operation) -> Tensor:
    """(L,): the new value of each."""
    levels = torch.arange(LEVELS, dtype=torch.uint8)
    if operation.name == "Invert":
        return 255 - levels
    if operation.name == "Solarize":
        return torch.where(levels >= _step(255.0, 0.0, operation.level), 255 - levels, levels)
    if operation.name == "Posterize":
        bits = 8 - round(operation.level * 4 / 9)
        return levels & (0xFF << (8 - bits) & 0xFF)
    return _as_bytes((1.0 + operation.sign * _step(0.0, 0.9, operation.level)) * levels)


def stretched_levels(images_BCHW: Tensor) -> Tensor:
    """(B, C, L): each channel's darkest value to 0 and its brightest to 255; a channel of one value as it is."""
    lowest, highest = (extreme(dim=(2, 3)).float() for extreme in (images_BCHW.amin, images_BCHW.amax))
    scale = 255 / (highest - lowest)
    flat = scale.isinf()
    lowest, scale = lowest.masked_fill(flat, 0.0), scale.masked_fill(flat, 1.0)
    return _as_bytes((_ramp(images_BCHW) - lowest.unsqueeze(2)) * scale.unsqueeze(2))


def equalised_levels(images_BCHW: Tensor) -> Tensor:
    """(B, C, L): so that each channel's values spread evenly; all in whole numbers."""
    values = images_BCHW.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], LEVELS).scatter_add_(2, values, torch.ones_like(values))
    of_the_highest = counts.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - of_the_highest) // 255
    below = counts.cumsum(dim=2) - counts
    levels = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    levels[:, :, 0] = 0
    return torch.where(step > 0, levels, _ramp(images_BCHW).long()).to(torch.uint8)


def contrasted(images_BCHW: Tensor, own_B111: Tensor, other_B111: Tensor) -> Tensor:
    """Blended with the mean of its grey values."""
    pixels = images_BCHW.shape[-2] * images_BCHW.shape[-1]
    means_B11 = grey(images_BCHW).sum(dim=(2, 3), dtype=torch.int64).unsqueeze(2).float() / pixels
    levels_B1L = _as_bytes(own_B111.squeeze(3) * _ramp(images_BCHW) + other_B111.squeeze(3) * means_B11)
    return mapped(images_BCHW, levels_B1L)


def blended(images_BCHW: Tensor, others: Tensor, own_B111: Tensor, other_B111: Tensor) -> Tensor:
    return _as_bytes(own_B111 * images_BCHW + other_B111 * others)


def grey(images_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) uint8: luma of ITU-R BT.601."""
    red, green, blue = images_BCHW.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8).unsqueeze(1)


def smooth(images_BCHW: Tensor) -> Tensor:
    """Each pixel but those at the border: the mean of itself, five times, and its eight neighbours."""
    values = images_BCHW.short()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * values[:, :, 1:-1, 1:-1]
    result = images_BCHW.clone()
    result[:, :, 1:-1, 1:-1] = ((2 * sums + 13) // 26).to(torch.uint8)
    return result


def _ramp(like: Tensor) -> Tensor:
    return torch.arange(LEVELS, dtype=torch.float32, device=like.device)


def _as_bytes(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
