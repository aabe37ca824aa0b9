"""CPU affinity: each worker of a node is pinned to its own part of the node's cores."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Literal

from fmfsd.distributed.world import World
from fmfsd.errors import ConfigError

log = logging.getLogger(__name__)
Cores = tuple[int, ...] | Literal["all"]
"""Core numbers, or all cores that this process may use."""
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_cores(text: str) -> Cores:
    """Parse a Linux core list such as `0-3,8` (order preserved, duplicates removed) or `all`. Raises ConfigError."""
    if text == "all":
        return "all"
    ranges = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
    cores = [core for match in ranges if match for core in range(int(match[1]), int(match[2] or match[1]) + 1)]
    if None in ranges or not cores:
        raise ConfigError(f"environment variable FMFSD_CORES: expected all, or cores as in 0-3,8, found {text!r}")
    return tuple(dict.fromkeys(cores))


def take_part(cores: Sequence[int], index: int, count: int) -> Sequence[int]:
    """Return the `index`-th of `count` consecutive parts of `cores`, whose sizes differ by at most one."""
    start, end = (len(cores) * edge // count for edge in (index, index + 1))
    return cores[start:end]


def pin_to_cores(cores: Cores, world: World) -> None:
    """Pin this process and the threads that it starts later to its part of the node's `cores`.

    Do nothing if there are fewer cores than workers. Only log a warning if the kernel refuses: that costs speed, not
    the run.
    """
    usable = sorted(os.sched_getaffinity(0)) if cores == "all" else cores
    if not world.local_rank < world.local_size <= len(usable):
        return
    share = take_part(usable, world.local_rank, world.local_size)
    try:
        os.sched_setaffinity(0, share)
    except OSError as error:
        log.warning("could not pin this worker to cores %s: %s", ", ".join(map(str, share)), error.strerror)
