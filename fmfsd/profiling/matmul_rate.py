"""Upper limit of a worker's compute rate: its rate for large matrix products in the run's precision."""

import time

import torch

from fmfsd.config import TrainConfig
from fmfsd.distributed.preflight import MIN_TIMED_S, TIMED_RUNS, make_operands, multiply, synchronize_device
from fmfsd.engine.precision import DTYPES, PrecisionFormat

MATRIX_SIDES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
"""Sides of the square matrices; which one is faster depends on the caches."""


def measure_matrix_flops_per_s(train: TrainConfig, device: torch.device) -> float:
    """Return the rate of the fastest product, in FLOP/s; a multiply-add counts as two."""
    dtype = PrecisionFormat.from_config(train).autocast_dtype or DTYPES[train.precision]
    return max(_rate(side, dtype, device) for side in MATRIX_SIDES[device.type])


def _rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right, _ = make_operands(side, device)
    left, right, seconds = left.to(dtype), right.to(dtype), list[float]()
    while len(seconds) <= TIMED_RUNS or sum(seconds) < MIN_TIMED_S:
        start = time.perf_counter()
        multiply(left, right)
        synchronize_device(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])
