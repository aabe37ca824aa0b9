"""RandomResizedCrop on whole batches: a part of each image, of any size and shape, at the size that the network sees.

Szegedy et al. 2015 (arXiv:1409.4842), as torchvision.transforms.RandomResizedCrop: a part of 8 to 100% of the area and
of 3:4 to 4:3 in shape. B batch, C channels, S side of the result, T taps of the filter.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.data.sampling import fractions

TRIES = 10
WORDS = TRIES + 1
SMALLEST_AREA = 0.08
WIDEST = 4 / 3


def part_draws(words: NDArray[np.uint64], side: int) -> dict[str, NDArray[np.int64]]:
    """`part_top`, `part_left`, `part_height` and `part_width` in an image of `side` pixels, from WORDS words a sample.

    The first of ten that fits, as in torchvision; else the whole image.
    """
    area = side**2 * (SMALLEST_AREA + (1 - SMALLEST_AREA) * fractions(words[:, :TRIES], half=0))
    shape = np.exp(math.log(WIDEST) * (2 * fractions(words[:, :TRIES], half=1) - 1))
    widths, heights = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
    fits = (widths <= side) & (heights <= side) & (widths > 0) & (heights > 0)
    rows, first = np.arange(len(words)), fits.argmax(axis=1)
    width, height = (np.where(fits.any(axis=1), each[rows, first], side) for each in (widths, heights))
    top, left = (
        np.floor(fractions(words[:, TRIES], half=half) * (side - length + 1))
        for half, length in ((0, height), (1, width))
    )
    parts = {"part_top": top, "part_left": left, "part_height": height, "part_width": width}
    return {name: values.astype(np.int64) for name, values in parts.items()}


def resized_crop(
    images_BCHW: Tensor, top_B: Tensor, left_B: Tensor, height_B: Tensor, width_B: Tensor, *, size: int
) -> Tensor:
    """(B, C, S, S) uint8: each image's part at `size` pixels a side, bilinear, and smoothed first where it shrinks.

    Antialiased as torch's `interpolate` is: a triangle that is as wide as the shrinking. Sums have one order whatever
    the batch, unlike a product of matrices: an image is the same on any number of workers.
    """
    most = math.ceil(max(1.0, max(images_BCHW.shape[-2:]) / size))
    tall = _along(images_BCHW.float(), top_B, height_B, size=size, reach=most, dim=2)
    return _along(tall, left_B, width_B, size=size, reach=most, dim=3).round().clamp(0, 255).to(torch.uint8)


def _along(images: Tensor, start_B: Tensor, length_B: Tensor, *, size: int, reach: int, dim: int) -> Tensor:
    """The part [start, start + length) of dimension `dim`, at `size`; the filter reaches so many pixels at most."""
    scale_B1 = (length_B / size).unsqueeze(1)
    centre_BS = (torch.arange(size, device=images.device) + 0.5) * scale_B1
    nearest_BS = centre_BS.floor().long()
    result: Tensor | float = 0.0
    weights: Tensor | float = 0.0
    for tap in range(-reach, reach + 1):
        pixel_BS = nearest_BS + tap
        weight_BS = (1 - ((pixel_BS + 0.5) - centre_BS).abs() / scale_B1.clamp(min=1)).clamp(min=0)
        weight_BS = weight_BS * ((pixel_BS >= 0) & (pixel_BS < length_B.unsqueeze(1)))
        place_BS = start_B.unsqueeze(1) + pixel_BS.clamp(min=0).minimum(length_B.unsqueeze(1) - 1)
        result = result + _spread(weight_BS, images, dim) * _taken(images, place_BS, dim)
        weights = weights + weight_BS
    assert isinstance(weights, Tensor)
    assert isinstance(result, Tensor)
    return result / _spread(weights, images, dim)


def _spread(values_BS: Tensor, images: Tensor, dim: int) -> Tensor:
    """To the dimensions of images, along `dim`."""
    shape = [len(images), 1, 1, 1]
    shape[dim] = values_BS.shape[1]
    return values_BS.view(shape)


def _taken(images: Tensor, place_BS: Tensor, dim: int) -> Tensor:
    """Of each image, the rows or columns that `place_BS` names."""
    shape = list(images.shape)
    shape[dim] = place_BS.shape[1]
    return images.gather(dim, _spread(place_BS, images, dim).expand(shape))
