"""Before a run: does every worker compute rightly, and as fast as the others, and how fast do they talk."""

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
"""For each call to the other workers."""
SIDES = {"cpu": 512, "cuda": 4096}
"""Of the matrices: 0.3 GFLOP a product for a core, 137 for a GPU."""
TIMED, TIMED_S = 5, 0.1
"""Repetitions after the first, and seconds of products, at least. The fastest counts: what else a machine does only
makes the others slower."""
MESSAGE_FLOATS = 1 << 20
SLOW = 0.5
"""So many times the median rate is too little."""


@dataclass(frozen=True)
class Measured:
    """What a worker has found: `wrong` in words, empty if nothing is; its rate, and seconds of one all-reduce."""

    rank: int
    node: int
    host: str
    wrong: str
    flops_per_s: float
    message_s: float
    latency_s: float

    def __str__(self) -> str:
        return f"rank {self.rank}, node {self.node}, host {self.host}"


def try_out(comms: Comms, world: World, device: torch.device, *, warn: Callable[[str], None]) -> None:
    """Let every worker multiply matrices and add up with the others; rank 0 logs how fast, and warns of who is slow.

    Raises PreflightError on all workers if one computes wrongly, RunFailedError if one does not answer in DEADLINE_S.
    """
    everyone = measure(comms, world, device)
    if wrong := [f"{each}: {each.wrong}" for each in everyone if each.wrong]:
        raise PreflightError(f"preflight: {'; '.join(wrong)}. Do not use that node until its hardware is checked")
    if comms.rank == 0:
        log.info("preflight: %s", described(everyone))
        for text in slow(everyone):
            log.warning(text)
            warn(text)


def measure(comms: Comms, world: World, device: torch.device) -> list[Measured]:
    """What each worker has found, by rank, on all of them."""
    wrong, product_s = _multiply(device)
    try:
        with comms.within(DEADLINE_S) as near:
            message_s, latency_s = (_add_up(near, floats, device) for floats in (MESSAGE_FLOATS, 1))
            rate = 2 * SIDES[device.type] ** 3 / product_s
            mine = Measured(world.rank, world.node, socket.gethostname(), wrong, rate, message_s, latency_s)
            return [Measured(**each) for each in comms.gather(asdict(mine))]
    except RuntimeError as error:
        who = f"rank {world.rank} could not add up with the others within {DEADLINE_S:g} s"
        raise RunFailedError(f"preflight: {who}; is the network between them slow, or cut? {error}") from error


def operands(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two square matrices and their product by formula, with which any right product agrees to the last bit.

    left[i, k] = a[i] + c[k] and right[k, j] = c[k] - b[j], all small integers, so that every sum on the way is one
    below 2**24 for sides up to 8192: exact in fp32, in whatever order it is made.
    """
    numbers = torch.arange(side, device=device)
    a, b, c = ((numbers % period - period // 2).float() for period in (61, 59, 31))
    first, second = c.sum(), (c * c).sum()
    product = second + first * (a.view(-1, 1) - b) - side * a.view(-1, 1) * b
    return a.view(-1, 1) + c, c.view(-1, 1) - b, product


def multiply(left: Tensor, right: Tensor) -> Tensor:
    return left @ right


def _multiply(device: torch.device) -> tuple[str, float]:
    """What is wrong with the worst of some products, and the seconds that the fastest took."""
    left, right, expected = operands(SIDES[device.type], device)
    seconds, wrong = list[float](), list[int]()
    while len(seconds) <= TIMED or sum(seconds) < TIMED_S:
        start = time.perf_counter()
        found = multiply(left, right)
        finish(device)
        seconds.append(time.perf_counter() - start)
        wrong.append(int((found != expected).sum()))
    what = f"its product of two matrices is wrong in {max(wrong)} of {expected.numel()} places"
    return what if any(wrong) else "", min(seconds[1:])


def _add_up(comms: Comms, floats: int, device: torch.device) -> float:
    """The seconds that the fastest of some all-reduces took."""
    tensor, seconds = torch.zeros(floats, device=device), []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        comms.sum_(tensor)
        with comms.activity.of_a_call():  # on a GPU this is where the host waits
            finish(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def described(everyone: Sequence[Measured]) -> str:
    """One line: the bytes of the message over the seconds of the slowest worker, and the median rate."""
    usual, slowest = _usual(everyone), min(everyone, key=lambda each: each.flops_per_s)
    rate = f"product {_short(usual / 1e9)} GFLOP/s"
    if len(everyone) == 1:
        return f"1 worker, {rate}"
    message_s, latency_s = (max(getattr(each, name) for each in everyone) for name in ("message_s", "latency_s"))
    talk = f"all-reduce of {4 * MESSAGE_FLOATS >> 20} MiB {_short(4e-9 * MESSAGE_FLOATS / message_s)} GB/s"
    latency = f"latency {_short(1e3 * latency_s)} ms"
    return (
        f"{len(everyone)} workers, {talk}, {latency}, {rate} (slowest: {slowest}: {_short(slowest.flops_per_s / 1e9)})"
    )


def slow(everyone: Sequence[Measured]) -> list[str]:
    """A warning of each worker that multiplies much slower than the others."""
    usual = _usual(everyone)
    return [
        f"{each} multiplies at {_short(each.flops_per_s / 1e9)} GFLOP/s where the median is {_short(usual / 1e9)}: "
        "all others will wait for it"
        for each in everyone
        if each.flops_per_s < SLOW * usual
    ]


def _usual(everyone: Sequence[Measured]) -> float:
    return statistics.median(each.flops_per_s for each in everyone)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
