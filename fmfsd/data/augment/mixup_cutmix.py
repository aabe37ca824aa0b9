"""MixUp (arXiv:1710.09412) and CutMix (arXiv:1905.04899): each sample of a batch with a partner of its own.

Unlike in the papers, where a batch has one share and is mixed with itself in another order, every sample draws its
share, and its partner from the samples of its shard: so no pair depends on how many workers or micro-batches there are.
B batch, C channels, H height, W width, K classes.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmfsd.data.sampling import fractions, integers

WORDS = 2
_QUANTILES = 1 << 16


def mixing_draws(words: NDArray[np.uint64], *, mixup: float, cutmix: float, side: int) -> dict[str, NDArray[Any]]:
    """Row p for the sample at position p of a shard's epoch, from its two random words.

    `partner` is the position that it is mixed with, another one if there is any; `share` is its part in the label and
    `blend` in each pixel but those of a box, from (`upper`, `left_edge`) to before (`lower`, `right_edge`), where there
    is the partner alone. `mixup` and `cutmix` are alphas, 0 for none; of both, a coin chooses; without `cutmix` there
    are no boxes. `side` is the image's.
    """
    others, places = max(1, len(words) - 1), np.arange(len(words))
    partner = (places + 1 + np.floor(fractions(words[:, 0], half=1) * others).astype(np.int64)) % len(words)
    chosen = integers(words[:, 0], _QUANTILES, field=1)
    cut = integers(words[:, 0], 2, field=0) == 1 if mixup and cutmix else np.full(len(words), cutmix > 0)
    if not cutmix:
        return {"partner": partner, "share": symmetric_beta(mixup)[chosen], "blend": symmetric_beta(mixup)[chosen]}
    drawn = np.where(cut, symmetric_beta(cutmix)[chosen], symmetric_beta(mixup or 1.0)[chosen])
    box = _boxes(words[:, 1], np.where(cut, drawn, 1.0), side)
    outside = 1 - (box["lower"] - box["upper"]) * (box["right_edge"] - box["left_edge"]) / side**2
    blend = np.where(cut, 1.0, drawn)
    return {"partner": partner, "share": np.where(cut, outside, drawn), "blend": blend, **box}


def _boxes(words: NDArray[np.uint64], kept: NDArray[np.float64], side: int) -> dict[str, NDArray[np.int64]]:
    """Around a pixel anywhere, with 1 - `kept` of the image's area where nothing of it is cut off."""
    half = np.floor(side * np.sqrt(1 - kept)).astype(np.int64) // 2
    row, column = (np.floor(fractions(words, half=part) * side).astype(np.int64) for part in (0, 1))
    edges = {"upper": row - half, "lower": row + half, "left_edge": column - half, "right_edge": column + half}
    return {name: edge.clip(0, side) for name, edge in edges.items()}


@lru_cache(maxsize=4)
def symmetric_beta(alpha: float) -> NDArray[np.float64]:
    """The middles of 65,536 equally likely parts of Beta(alpha, alpha): a draw of it is one of them.

    Found by bisection of its distribution function, so that a draw takes a fixed number of random bits, and the same
    ones in every version of NumPy.
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
    """P(Beta(alpha, alpha) < x) for x up to 1/2: https://dlmf.nist.gov/8.17.E8, whose terms are all positive."""
    term = np.ones_like(x)
    total = term.copy()
    for number in range(1, 60 + 10 * math.ceil(alpha**0.5)):
        term = term * x * ((2 * alpha + number - 1) / (alpha + number))
        total += term
    log_of_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    with np.errstate(divide="ignore"):
        return np.exp(alpha * (np.log(x) + np.log1p(-x)) - log_of_beta) / alpha * total


def mixed(images_BCHW: Tensor, partners_BCHW: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Floating images, normalised or not, each with its partner by what `mixing_draws` gave."""
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
    place = torch.arange(length, device=start_B.device)
    return (place >= start_B.unsqueeze(1)) & (place < end_B.unsqueeze(1))


def shares(labels_B: Tensor, partners_B: Tensor, share_B: Tensor, *, num_classes: int) -> Tensor:
    """(B, K) of `share_B`'s type: a label's share at its class, the rest at the partner's."""
    classes = torch.arange(num_classes, device=labels_B.device)  # F.one_hot looks at values, for which a host waits
    own, other = ((each.unsqueeze(1) == classes).to(share_B.dtype) for each in (labels_B, partners_B))
    share_B1 = share_B.unsqueeze(1)
    return share_B1 * own + (1 - share_B1) * other
