"""Memory that this process may use: the machine's memory and the limits of its cgroups."""

import os
from contextlib import suppress

from fmfsd.system.cgroups import list_cgroups

_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""File names of cgroups v2 and v1."""


def usable_memory() -> int:
    """Return the usable memory in bytes: the machine's, or less if a cgroup of this process has a limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in list_cgroups("memory"):
        for name in _LIMITS:
            with suppress(OSError, ValueError):  # "max" is not a number
                limits.append(int((folder / name).read_text()))
    return min(limits)
