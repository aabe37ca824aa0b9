"""How much memory this machine has for its processes, or the control group of this one."""

import os
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""In either version of Linux's control groups."""


def usable_memory() -> int:
    """Bytes: the machine's, or less where a control group that this process is in may not use all of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            root = _GROUPS if number == "0" else _GROUPS / "memory"
            own = root / path.lstrip("/")
            for folder in (own, *(above for above in own.parents if above.is_relative_to(root))):
                for name in _LIMITS:
                    with suppress(OSError, ValueError):  # "max" is no number
                        limits.append(int((folder / name).read_text()))
    return min(limits)
