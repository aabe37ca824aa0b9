"""MixUp (arXiv:1710.09412) and CutMix (arXiv:1905.04899), with a mixing ratio and a partner per sample.

In the papers a batch has one ratio and is mixed with its own permutation. Here every sample draws its own ratio, and
its partner from its shard, so that pairs do not depend on the number of workers or micro-batches.
B batch, C channels, H height, W width, K classes.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.data.sampling import to_fractions, to_integers

VALUES_PER_SAMPLE = 2
_QUANTILES = 1 << 16


def draw_mixing(bits: NDArray[np.uint64], *, mixup: float, cutmix: float, side: int) -> dict[str, NDArray[Any]]:
    """Draw the mixing parameters of a shard's epoch, row p for position p, from two random values per sample.

    `partner` is the position of the partner, a different sample if there is one; `share` is the weight of the sample's
    own label, `blend` the weight of its own pixels outside of a box from (`upper`, `left_edge`) to (`lower`,
    `right_edge`), exclusive. Inside the box there are only the partner's pixels. `mixup` and `cutmix` are the alphas,
    0 for none; with both, each sample gets one of them at random; without `cutmix` there are no boxes. `side` is the
    image's.
    """
    others, positions = max(1, len(bits) - 1), np.arange(len(bits))
    partner = (positions + 1 + np.floor(to_fractions(bits[:, 0], half=1) * others).astype(np.int64)) % len(bits)
    quantile = to_integers(bits[:, 0], _QUANTILES, field=1)
    is_cutmix = to_integers(bits[:, 0], 2, field=0) == 1 if mixup and cutmix else np.full(len(bits), cutmix > 0)
    if not cutmix:
        return {"partner": partner, "share": beta_quantiles(mixup)[quantile], "blend": beta_quantiles(mixup)[quantile]}
    ratio = np.where(is_cutmix, beta_quantiles(cutmix)[quantile], beta_quantiles(mixup or 1.0)[quantile])
    box = _draw_boxes(bits[:, 1], np.where(is_cutmix, ratio, 1.0), side)
    outside = 1 - (box["lower"] - box["upper"]) * (box["right_edge"] - box["left_edge"]) / side**2
    blend = np.where(is_cutmix, 1.0, ratio)
    return {"partner": partner, "share": np.where(is_cutmix, outside, ratio), "blend": blend, **box}


def _draw_boxes(bits: NDArray[np.uint64], ratio: NDArray[np.float64], side: int) -> dict[str, NDArray[np.int64]]:
    """Draw boxes with a fraction 1 - `ratio` of the image's area, around any pixel, clipped at the border."""
    half = np.floor(side * np.sqrt(1 - ratio)).astype(np.int64) // 2
    row, column = (np.floor(to_fractions(bits, half=part) * side).astype(np.int64) for part in (0, 1))
    edges = {"upper": row - half, "lower": row + half, "left_edge": column - half, "right_edge": column + half}
    return {name: edge.clip(0, side) for name, edge in edges.items()}


@lru_cache(maxsize=4)
def beta_quantiles(alpha: float) -> NDArray[np.float64]:
    """Return 65,536 quantiles of Beta(alpha, alpha): the midpoints of equally likely intervals.

    A draw is one of them. They are computed by bisection of the distribution function, so that a draw takes a fixed
    number of random bits and is the same in every version of NumPy.
    """
    below = (np.arange(_QUANTILES // 2) + 0.5) / _QUANTILES
    low, high = np.zeros_like(below), np.full_like(below, 0.5)
    for _ in range(40):
        middle = (low + high) / 2
        too_low = _distribution(middle, alpha) < below
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    lower = (low + high) / 2
    return np.concatenate([lower, 1 - lower[::-1]])


def _distribution(x: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return P(Beta(alpha, alpha) < x) for x up to 1/2: https://dlmf.nist.gov/8.17.E8, whose terms are all positive."""
    term = np.ones_like(x)
    total = term.copy()
    for number in range(1, 60 + 10 * math.ceil(alpha**0.5)):
        term = term * x * ((2 * alpha + number - 1) / (alpha + number))
        total += term
    log_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    with np.errstate(divide="ignore"):
        return np.exp(alpha * (np.log(x) + np.log1p(-x)) - log_beta) / alpha * total


def mix_images(images_BCHW: Tensor, partners_BCHW: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Mix floating-point images, normalised or not, with their partners, by the draws of `draw_mixing`."""
    blend = draws["blend"].to(images_BCHW.dtype).view(-1, 1, 1, 1)
    blended = torch.lerp(partners_BCHW, images_BCHW, blend)
    if "upper" not in draws:
        return blended
    height, width = images_BCHW.shape[-2:]
    inside_BH = _between(draws["upper"], draws["lower"], height)
    inside_BW = _between(draws["left_edge"], draws["right_edge"], width)
    inside = (inside_BH.unsqueeze(2) & inside_BW.unsqueeze(1)).unsqueeze(1)
    return torch.where(inside, partners_BCHW, blended)


def _between(start_B: Tensor, end_B: Tensor, length: int) -> Tensor:
    position = torch.arange(length, device=start_B.device)
    return (position >= start_B.unsqueeze(1)) & (position < end_B.unsqueeze(1))


def mix_labels(labels_B: Tensor, partners_B: Tensor, share_B: Tensor, *, num_classes: int) -> Tensor:
    """Return soft labels (B, K) in `share_B`'s dtype: `share_B` at a label's class, the rest at its partner's class."""
    classes = torch.arange(num_classes, device=labels_B.device)  # F.one_hot reads values: a host synchronisation
    own, other = ((each.unsqueeze(1) == classes).to(share_B.dtype) for each in (labels_B, partners_B))
    share_B1 = share_B.unsqueeze(1)
    return share_B1 * own + (1 - share_B1) * other
