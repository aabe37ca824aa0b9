"""Crop, flip, Cutout and normalisation of whole batches of images on their device, with random draws passed in.

B batch, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def centre_crop(images_BCHW: Tensor, side: int) -> Tensor:
    """Return the central `side` x `side` pixels of larger images, as a view."""
    top, left = (max(0, length - side) // 2 for length in images_BCHW.shape[-2:])
    return images_BCHW[..., top : top + side, left : left + side]


def horizontal_flip(images_BCHW: Tensor, mirrored_B: Tensor) -> Tensor:
    """Flip images horizontally where `mirrored_B` is true (four times as fast as `torch.where` on uint8)."""
    batch = len(images_BCHW)
    rows = torch.arange(batch, device=images_BCHW.device) + batch * mirrored_B
    return torch.cat([images_BCHW, images_BCHW.flip(-1)]).index_select(0, rows)


def random_crop(images_BCHW: Tensor, top_B: Tensor, left_B: Tensor, *, padding: int, fill: int) -> Tensor:
    """Pad each image by `padding` pixels of value `fill`, then crop it to its size at (top, left), 0 to 2 * padding.

    Every row of every result is a contiguous piece of the padded images, so rows are gathered from a view in which
    each pixel starts a row. Twenty times as fast as cropping image by image, and without a host synchronisation.
    """
    batch, channels, height, width = images_BCHW.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = images_BCHW.new_full((batch, channels, tall, wide), fill)
    padded[:, :, padding : padding + height, padding : padding + width] = images_BCHW
    rows_from_any_pixel = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    planes = torch.arange(batch * channels, device=images_BCHW.device).view(batch, channels, 1) * (tall * wide)
    rows = torch.arange(height, device=images_BCHW.device) * wide
    starts_BCH = planes + rows + (top_B * wide + left_B).view(batch, 1, 1)
    return rows_from_any_pixel.index_select(0, starts_BCH.flatten()).view(images_BCHW.shape)


def cutout(images_BCHW: Tensor, row_B: Tensor, column_B: Tensor, *, side: int) -> Tensor:
    """Set a square of `side` pixels around (row, column), clipped at the border, to black.

    Cutout (arXiv:1708.04552), before normalisation as in the self-distillation recipes, so black and not mean grey.
    """
    height, width = images_BCHW.shape[-2:]
    inside_BH = _within(row_B, height, side)
    inside_BW = _within(column_B, width, side)
    return images_BCHW.masked_fill((inside_BH.unsqueeze(2) & inside_BW.unsqueeze(1)).unsqueeze(1), 0)


def _within(centre_B: Tensor, length: int, side: int) -> Tensor:
    distance = torch.arange(length, device=centre_B.device) - centre_B.unsqueeze(1)
    return (distance >= -(side // 2)) & (distance < side - side // 2)


class Normalise:
    """Computes (image / 255 - mean) / std per channel, in `dtype`; the constants are stored on `device`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device) -> None:
        scale = [1 / (255 * each) for each in std]
        shift = [-centre / each for centre, each in zip(mean, std, strict=True)]
        self._scale, self._shift = (
            torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1) for values in (scale, shift)
        )

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.to(self._scale.dtype).mul_(self._scale).add_(self._shift)
