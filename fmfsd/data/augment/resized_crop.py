"""RandomResizedCrop on whole batches: a random crop of each image, resized to the network's input size.

Szegedy et al. 2015 (arXiv:1409.4842), as torchvision.transforms.RandomResizedCrop: crops have 8 to 100% of the area and
an aspect ratio of 3:4 to 4:3. B batch, C channels, S side of the result.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.data.sampling import to_fractions

MAX_TRIES = 10
VALUES_PER_SAMPLE = MAX_TRIES + 1
MIN_AREA = 0.08
MAX_ASPECT_RATIO = 4 / 3


def draw_crop_boxes(bits: NDArray[np.uint64], side: int) -> dict[str, NDArray[np.int64]]:
    """Draw crops of an image of `side` pixels, from VALUES_PER_SAMPLE random values per sample.

    Return `part_top`, `part_left`, `part_height` and `part_width`: the first of ten random crops that fits, as in
    torchvision, or the whole image if none fits.
    """
    area = side**2 * (MIN_AREA + (1 - MIN_AREA) * to_fractions(bits[:, :MAX_TRIES], half=0))
    aspect_ratio = np.exp(math.log(MAX_ASPECT_RATIO) * (2 * to_fractions(bits[:, :MAX_TRIES], half=1) - 1))
    widths, heights = np.rint(np.sqrt(area * aspect_ratio)), np.rint(np.sqrt(area / aspect_ratio))
    fits = (widths <= side) & (heights <= side) & (widths > 0) & (heights > 0)
    rows, first = np.arange(len(bits)), fits.argmax(axis=1)
    width, height = (np.where(fits.any(axis=1), each[rows, first], side) for each in (widths, heights))
    top, left = (
        np.floor(to_fractions(bits[:, MAX_TRIES], half=half) * (side - length + 1))
        for half, length in ((0, height), (1, width))
    )
    boxes = {"part_top": top, "part_left": left, "part_height": height, "part_width": width}
    return {name: values.astype(np.int64) for name, values in boxes.items()}


def resized_crop(
    images_BCHW: Tensor, top_B: Tensor, left_B: Tensor, height_B: Tensor, width_B: Tensor, *, size: int
) -> Tensor:
    """Resize each image's crop to `size` pixels a side: (B, C, S, S) uint8, bilinear and antialiased.

    Antialiasing is that of torch's `interpolate`: a triangle filter whose width is the reduction factor. Unlike in a
    matrix product, the order of sums does not depend on the batch: an image is the same on any number of workers.
    """
    reach = math.ceil(max(1.0, max(images_BCHW.shape[-2:]) / size))
    columns = _resize_along(images_BCHW.float(), top_B, height_B, size=size, reach=reach, dim=2)
    return _resize_along(columns, left_B, width_B, size=size, reach=reach, dim=3).round().clamp(0, 255).to(torch.uint8)


def _resize_along(images: Tensor, start_B: Tensor, length_B: Tensor, *, size: int, reach: int, dim: int) -> Tensor:
    """Resize the range [start, start + length) of dimension `dim` to `size`; `reach` is the filter's maximum radius."""
    scale_B1 = (length_B / size).unsqueeze(1)
    centre_BS = (torch.arange(size, device=images.device) + 0.5) * scale_B1
    nearest_BS = centre_BS.floor().long()
    result: Tensor | float = 0.0
    weights: Tensor | float = 0.0
    for tap in range(-reach, reach + 1):
        pixel_BS = nearest_BS + tap
        weight_BS = (1 - ((pixel_BS + 0.5) - centre_BS).abs() / scale_B1.clamp(min=1)).clamp(min=0)
        weight_BS = weight_BS * ((pixel_BS >= 0) & (pixel_BS < length_B.unsqueeze(1)))
        index_BS = start_B.unsqueeze(1) + pixel_BS.clamp(min=0).minimum(length_B.unsqueeze(1) - 1)
        result = result + _expand(weight_BS, images, dim) * _gather(images, index_BS, dim)
        weights = weights + weight_BS
    assert isinstance(weights, Tensor)
    assert isinstance(result, Tensor)
    return result / _expand(weights, images, dim)


def _expand(values_BS: Tensor, images: Tensor, dim: int) -> Tensor:
    """Reshape (B, S) values so that they broadcast over images along `dim`."""
    shape = [len(images), 1, 1, 1]
    shape[dim] = values_BS.shape[1]
    return values_BS.view(shape)


def _gather(images: Tensor, index_BS: Tensor, dim: int) -> Tensor:
    """Return the rows or columns `index_BS` of each image."""
    shape = list(images.shape)
    shape[dim] = index_BS.shape[1]
    return images.gather(dim, _expand(index_BS, images, dim).expand(shape))
