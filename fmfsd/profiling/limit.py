"""Upper limit of a worker's compute rate: its rate for large matrix products in the run's precision."""

import time

import torch

from fmfsd.config import TrainConfig
from fmfsd.distributed.preflight import TIMED, TIMED_S, finish, multiply, operands
from fmfsd.engine.precision import DTYPES, Form

SIDES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
"""Sides of the square matrices; which one is faster depends on the caches."""


def matrix_flops_per_s(train: TrainConfig, device: torch.device) -> float:
    """Return the rate of the fastest product, in FLOP/s; a multiply-add counts as two."""
    dtype = Form.of(train).mixed or DTYPES[train.precision]
    return max(_rate(side, dtype, device) for side in SIDES[device.type])


def _rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right, _ = operands(side, device)
    left, right, seconds = left.to(dtype), right.to(dtype), list[float]()
    while len(seconds) <= TIMED or sum(seconds) < TIMED_S:
        start = time.perf_counter()
        multiply(left, right)
        finish(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])
