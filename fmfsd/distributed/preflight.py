"""Preflight: check before training that every worker computes correctly, and measure compute and all-reduce speed."""

import logging
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fmfsd.distributed.collectives import Comms
from fmfsd.distributed.world import World
from fmfsd.errors import PreflightError, RunFailedError

log = logging.getLogger(__name__)
DEADLINE_S = 60.0
"""Timeout of each collective."""
MATRIX_SIDES = {"cpu": 512, "cuda": 4096}
"""Side of the square matrices: 0.3 GFLOP per product on a core, 137 on a GPU."""
TIMED_RUNS, MIN_TIMED_S = 5, 0.1
"""Minimum number of timed repetitions after the first, and minimum total seconds of products. The fastest repetition
counts: other load on the machine only slows the others down."""
MESSAGE_FLOATS = 1 << 20
SLOW_FRACTION = 0.5
"""A worker below this fraction of the median rate is reported as slow."""


@dataclass(frozen=True)
class WorkerMeasurement:
    """One worker's results: `error` (empty if there is none), product rate, and seconds of one all-reduce."""

    rank: int
    node: int
    host: str
    error: str
    flops_per_s: float
    message_s: float
    latency_s: float

    def __str__(self) -> str:
        return f"rank {self.rank}, node {self.node}, host {self.host}"


def run_preflight(comms: Comms, world: World, device: torch.device, *, warn: Callable[[str], None]) -> None:
    """Let every worker multiply matrices and all-reduce; rank 0 logs the speed, and warns of slow workers.

    Raises PreflightError on all workers if one computes a wrong product, RunFailedError if one does not take part in
    an all-reduce within DEADLINE_S.
    """
    workers = measure_workers(comms, world, device)
    if wrong := [f"{each}: {each.error}" for each in workers if each.error]:
        raise PreflightError(f"preflight: {'; '.join(wrong)}. Exclude this node until its hardware is checked")
    if comms.rank == 0:
        log.info("preflight: %s", format_measurements(workers))
        for text in find_slow_workers(workers):
            log.warning(text)
            warn(text)


def measure_workers(comms: Comms, world: World, device: torch.device) -> list[WorkerMeasurement]:
    """Return the measurements of all workers, by rank, on every worker."""
    wrong, product_s = _multiply(device)
    try:
        with comms.with_timeout(DEADLINE_S) as timed_comms:
            message_s, latency_s = (_time_all_reduce(timed_comms, floats, device) for floats in (MESSAGE_FLOATS, 1))
            rate = 2 * MATRIX_SIDES[device.type] ** 3 / product_s
            mine = WorkerMeasurement(world.rank, world.node, socket.gethostname(), wrong, rate, message_s, latency_s)
            return [WorkerMeasurement(**each) for each in comms.all_gather_object(asdict(mine))]
    except RuntimeError as error:
        problem = f"rank {world.rank} could not complete an all-reduce within {DEADLINE_S:g} s"
        remedy = "check the network between the nodes"
        raise RunFailedError(f"preflight: {problem}: {error}; {remedy}") from error


def make_operands(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return two square matrices and their exact product, which every correct multiplication reproduces bit for bit.

    left[i, k] = a[i] + c[k] and right[k, j] = c[k] - b[j], all small integers, so that every partial sum is an integer
    below 2**24 for sides up to 8192: exact in fp32, in any order of summation.
    """
    numbers = torch.arange(side, device=device)
    a, b, c = ((numbers % period - period // 2).float() for period in (61, 59, 31))
    first, second = c.sum(), (c * c).sum()
    product = second + first * (a.view(-1, 1) - b) - side * a.view(-1, 1) * b
    return a.view(-1, 1) + c, c.view(-1, 1) - b, product


def multiply(left: Tensor, right: Tensor) -> Tensor:
    return left @ right


def _multiply(device: torch.device) -> tuple[str, float]:
    """Return the error of the worst product (empty: none), and the seconds of the fastest one."""
    left, right, expected = make_operands(MATRIX_SIDES[device.type], device)
    seconds, wrong = list[float](), list[int]()
    while len(seconds) <= TIMED_RUNS or sum(seconds) < MIN_TIMED_S:
        start = time.perf_counter()
        product = multiply(left, right)
        synchronize_device(device)
        seconds.append(time.perf_counter() - start)
        wrong.append(int((product != expected).sum()))
    error = f"a matrix product has {max(wrong)} wrong elements of {expected.numel()}"
    return error if any(wrong) else "", min(seconds[1:])


def _time_all_reduce(comms: Comms, floats: int, device: torch.device) -> float:
    """Return the seconds of the fastest all-reduce."""
    tensor, seconds = torch.zeros(floats, device=device), []
    for _ in range(1 + TIMED_RUNS):
        start = time.perf_counter()
        comms.all_reduce_(tensor)
        with comms.activity.measure_call():  # on a GPU this is where the host waits
            synchronize_device(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def synchronize_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def format_measurements(workers: Sequence[WorkerMeasurement]) -> str:
    """Return one line: the all-reduce bandwidth and latency of the slowest worker, and the median product rate."""
    median, slowest = _median_rate(workers), min(workers, key=lambda each: each.flops_per_s)
    rate = f"product {_short(median / 1e9)} GFLOP/s"
    if len(workers) == 1:
        return f"1 worker, {rate}"
    message_s, latency_s = (max(getattr(each, name) for each in workers) for name in ("message_s", "latency_s"))
    bandwidth = f"all-reduce of {4 * MESSAGE_FLOATS >> 20} MiB {_short(4e-9 * MESSAGE_FLOATS / message_s)} GB/s"
    latency = f"latency {_short(1e3 * latency_s)} ms"
    return (
        f"{len(workers)} workers, {bandwidth}, {latency}, {rate} "
        f"(slowest: {slowest}: {_short(slowest.flops_per_s / 1e9)})"
    )


def find_slow_workers(workers: Sequence[WorkerMeasurement]) -> list[str]:
    """Return a warning for each worker that multiplies much more slowly than the median."""
    median = _median_rate(workers)
    return [
        f"{each} is slow: {_short(each.flops_per_s / 1e9)} GFLOP/s, median {_short(median / 1e9)}: "
        "all other workers will wait for it"
        for each in workers
        if each.flops_per_s < SLOW_FRACTION * median
    ]


def _median_rate(workers: Sequence[WorkerMeasurement]) -> float:
    return statistics.median(each.flops_per_s for each in workers)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
