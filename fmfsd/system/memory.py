"""How much memory this machine has for its processes, or the control group of this one."""

import os
from contextlib import suppress

from fmfsd.system.cgroups import groups

_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""In either version of Linux's control groups."""


def usable_memory() -> int:
    """Bytes: the machine's, or less where a control group that this process is in may not use all of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in groups("memory"):
        for name in _LIMITS:
            with suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((folder / name).read_text()))
    return min(limits)
