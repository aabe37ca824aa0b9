"""Sampling order and random bits of augmentation, which depend only on (seed, epoch, shard).

Only raw 64-bit values of NumPy's Philox are used: NumPy guarantees the stream of a bit generator across versions, but
not the methods of `Generator` (NEP 19). Philox: Salmon et al. 2011, doi 10.1145/2063384.2063405.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_VALUES_PER_SAMPLE = 3


@dataclass(frozen=True)
class ShardEpoch:
    """The sampling order of one shard in one epoch: row p describes the sample at position p."""

    permutation: NDArray[np.int64]
    """Index of the sample in the shard."""
    random_bits: NDArray[np.uint64]
    """(samples, 2) random 64-bit values for augmentation."""


def draw_shard_epoch(seed: int, epoch: int, shard: int, samples: int) -> ShardEpoch:
    """Return the order of `samples` samples of `shard` in `epoch`, and their random bits. `seed` is below 2**63."""
    key = np.array([seed, (epoch << 32) | shard], np.uint64)
    bits = np.random.Philox(key=key).random_raw(samples * _VALUES_PER_SAMPLE).reshape(samples, _VALUES_PER_SAMPLE)
    return ShardEpoch(np.argsort(bits[:, 0], kind="stable"), bits[:, 1:])


def draw_stream(seed: int, epoch: int, shard: int, *, stream: int, samples: int, values: int) -> NDArray[np.uint64]:
    """Return more random 64-bit values, with a row per position, from `stream` (1 or higher). Streams do not overlap.

    The stream's Philox counter starts at stream * 2**192, that of `draw_shard_epoch` at 0.
    """
    key = np.array([seed, (epoch << 32) | shard], np.uint64)
    start = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Philox(key=key, counter=start).random_raw(samples * values).reshape(samples, values)


def to_fractions(bits: NDArray[np.uint64], *, half: int) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), in steps of 2**-32, from the `half`-th 32 bits of each value (0 or 1)."""
    return ((bits >> np.uint64(32 * half)) & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32


def to_integers(bits: NDArray[np.uint64], below: int, *, field: int) -> NDArray[np.int64]:
    """Return uniform integers from 0 to `below` - 1, from the `field`-th 16 bits of each value (0 to 3).

    Probabilities differ by at most 2**-16: for 9 crop offsets the bias is below 2e-5.
    """
    sixteen_bits = (bits >> np.uint64(16 * field)) & np.uint64(0xFFFF)
    return (sixteen_bits * np.uint64(below) >> np.uint64(16)).astype(np.int64)
