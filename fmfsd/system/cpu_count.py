"""Number of CPU cores that this process may use: CPU affinity and the CPU quotas of its cgroups."""

import os
from collections.abc import Iterator
from contextlib import suppress

from fmfsd.system.cgroups import list_cgroups


def usable_cores() -> int:
    """Return the number of usable cores: at least 1, also with a quota of half a core."""
    return max(1, round(min([len(os.sched_getaffinity(0)), *_read_quotas()])))


def _read_quotas() -> Iterator[float]:
    """Yield the CPU quotas of this process's cgroups, in cores."""
    for folder in list_cgroups("cpu"):
        with suppress(OSError, ValueError):  # "max" is not a number
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            yield quota / period
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:
                yield quota / period
