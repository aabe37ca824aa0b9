"""Which of its node's cores a worker computes on: a share of its own, out of the others' way."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Literal

from fmfsd.distributed.world import World
from fmfsd.errors import ConfigError

log = logging.getLogger(__name__)
Cores = tuple[int, ...] | Literal["all"]
"""Numbers, or all that this process may use."""
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_cores(text: str) -> Cores:
    """The cores of a list as Linux writes it, `0-3,8`, in its order, each once; or `all`. ConfigError for another."""
    if text == "all":
        return "all"
    ranges = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
    cores = [core for found in ranges if found for core in range(int(found[1]), int(found[2] or found[1]) + 1)]
    if None in ranges or not cores:
        raise ConfigError(f"environment variable FMFSD_CORES: expected all, or cores as in 0-3,8, found {text!r}")
    return tuple(dict.fromkeys(cores))


def share_of(cores: Sequence[int], index: int, count: int) -> Sequence[int]:
    """The `index`-th of `count` consecutive parts, whose sizes differ by at most one."""
    start, end = (len(cores) * edge // count for edge in (index, index + 1))
    return cores[start:end]


def stay_on_share(cores: Cores, world: World) -> None:
    """Keep this process, with the threads that it starts from now on, on its share of the node's `cores`.

    If there are not as many as workers, nothing is done; if the kernel refuses, neither: that costs speed, not the run.
    """
    usable = sorted(os.sched_getaffinity(0)) if cores == "all" else cores
    if not world.local_rank < world.local_size <= len(usable):
        return
    share = share_of(usable, world.local_rank, world.local_size)
    try:
        os.sched_setaffinity(0, share)
    except OSError as error:
        log.warning("not kept on cores %s: %s", ", ".join(map(str, share)), error.strerror)
