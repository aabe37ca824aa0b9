"""Which sample comes when, and how it is changed: tables that depend on (seed, epoch, shard) and on nothing else.

Only raw words of NumPy's Philox are used, since NumPy keeps a bit generator's stream the same in every version, which
it does not promise for the methods of `Generator` (NEP 19). Philox: Salmon et al. 2011, doi 10.1145/2063384.2063405.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_SAMPLE = 3


@dataclass(frozen=True)
class ShardEpoch:
    """One shard's epoch: row p describes the sample that comes at position p."""

    permutation: NDArray[np.int64]
    """Which sample of the shard."""
    words: NDArray[np.uint64]
    """(samples, 2) random words, from which augmentation takes its draws."""


def shard_epoch(seed: int, epoch: int, shard: int, samples: int) -> ShardEpoch:
    """The order of `samples` samples of `shard` in `epoch`, and their random words. `seed` is below 2**63."""
    key = np.array([seed, (epoch << 32) | shard], np.uint64)
    words = np.random.Philox(key=key).random_raw(samples * _WORDS_PER_SAMPLE).reshape(samples, _WORDS_PER_SAMPLE)
    return ShardEpoch(np.argsort(words[:, 0], kind="stable"), words[:, 1:])


def stream_words(seed: int, epoch: int, shard: int, *, stream: int, samples: int, words: int) -> NDArray[np.uint64]:
    """(samples, words) more random words, row p for position p: of a `stream` from 1 on, which no other overlaps.

    Its counter starts at stream * 2**192, that of `shard_epoch` at 0.
    """
    key = np.array([seed, (epoch << 32) | shard], np.uint64)
    start = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Philox(key=key, counter=start).random_raw(samples * words).reshape(samples, words)


def fractions(words: NDArray[np.uint64], *, half: int) -> NDArray[np.float64]:
    """Numbers from 0 to below 1, in steps of 2**-32, from the `half`-th 32 bits of each word (0 or 1)."""
    return ((words >> np.uint64(32 * half)) & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32


def integers(words: NDArray[np.uint64], below: int, *, field: int) -> NDArray[np.int64]:
    """Integers from 0 to `below` - 1, from the `field`-th 16 bits of each word (0 to 3).

    Of 65,536 values each result gets the same number, to one: with 9 crop offsets a bias under 2e-5.
    """
    sixteen_bits = (words >> np.uint64(16 * field)) & np.uint64(0xFFFF)
    return (sixteen_bits * np.uint64(below) >> np.uint64(16)).astype(np.int64)
