"""Synthetic images: generated deterministically, with classes that only spatial features can distinguish.

Ten binary patterns, each similar to its own mirror image: horizontal and vertical stripes, checkerboards, diagonal
lattices and rings, each fine and coarse. Every pattern covers half of the pixels. Phase and both colours are random per
sample, and noise is added, so neither the mean, the histogram nor any single pixel determines the class. With 100
classes, the upper and the lower half of an image have different patterns.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SIDE = 32
NOISE = 0.25
"""Largest noise, as a fraction of full scale."""

Floats = NDArray[np.float32]
Pattern = Callable[[Floats, Floats, float], Floats]

_PERIODS = (5.0, 9.0)
_SHAPES: tuple[Pattern, ...] = (
    lambda y, x, phase: np.sin(y + 0 * x + phase),
    lambda y, x, phase: np.sin(x + 0 * y + phase),
    lambda y, x, phase: np.sin(y + phase) * np.sin(x + 2 * phase),
    lambda y, x, phase: np.sin(0.7 * (y + x) + phase) * np.sin(0.7 * (y - x) + 2 * phase),
    lambda y, x, phase: np.sin(np.hypot(y - y.mean(), x - x.mean()) + phase),
)
NUM_PATTERNS = len(_SHAPES) * len(_PERIODS)


def synthetic_images(num_classes: int, samples: int, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (samples, 3, 32, 32) and their labels, 10 or 100 classes round-robin; `seed` is below 2**64."""
    assert num_classes in (NUM_PATTERNS, NUM_PATTERNS**2), num_classes
    labels = np.arange(samples, dtype=np.int64) % num_classes
    source = np.random.Philox(key=np.array([seed, num_classes], np.uint64))
    draws = _to_fractions(source.random_raw(samples * 8)).reshape(samples, 8)
    upper, lower = (labels // NUM_PATTERNS, labels % NUM_PATTERNS) if num_classes > NUM_PATTERNS else (labels, labels)
    images = np.empty((samples, 3, SIDE, SIDE), np.uint8)
    for row, (image, draw) in enumerate(zip(images, draws, strict=True)):
        mask = np.where(
            np.arange(SIDE)[:, None] < SIDE // 2, _pattern(upper[row], draw[0]), _pattern(lower[row], draw[1])
        )
        noise = (source.random_raw(image.size // 8).view(np.uint8).reshape(image.shape) / np.float32(255) - 0.5) * NOISE
        image[:] = np.clip((_colours(draw[2:], mask) + noise) * 255, 0, 255)
    return images, labels


def _to_fractions(bits: NDArray[np.uint64]) -> Floats:
    """Return numbers in [0, 1)."""
    return ((bits >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def _pattern(kind: int, draw: float) -> NDArray[np.bool_]:
    """Return the (32, 32) mask of pattern `kind`, shifted by `draw`, which covers half of the pixels."""
    shape, period = _SHAPES[kind % len(_SHAPES)], _PERIODS[kind // len(_SHAPES)]
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) * np.float32(2 * np.pi / period)
    values = shape(y, x, 2 * np.pi * draw)
    return np.asarray(values > np.median(values))


def _colours(draws: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Return (3, 32, 32): two colours, on and off the mask, at least a third of full scale apart in each channel."""
    low, gap = draws[:3] * (1 / 3), 1 / 3 + draws[3:] * (1 / 3)
    on, off = (low, low + gap) if draws[0] + draws[3] < draws[1] + draws[4] else (low + gap, low)
    return np.where(mask, on[:, None, None], off[:, None, None]).astype(np.float32)
