"""Limits and counters of the control group (cgroup v1 or v2) that this process runs in. Standard library only."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_limit() -> int | None:
    """Return the bytes of memory that this process's group, or a parent group, may use; None: no known limit."""
    limits = []
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # "max" is not a number
                limits.append(int((folder / name).read_text()))
    return min(limits, default=None)


def cpu_limit() -> float | None:
    """Return the average number of cores that this process's group, or a parent group, may use; None: no limit."""
    limits = []
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError):  # "max" is not a number
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            limits.append(quota / period)
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            limits += [quota / period] if quota > 0 else []
    return min(limits, default=None)


def count_oom_kills() -> int:
    """Return how often the OOM killer has killed a process of this process's group; 0 if that is not recorded."""
    for folder in _groups("memory"):
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                events = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(events.get("oom_kill", 0))
    return 0


def _groups(controller: str) -> Iterator[Path]:
    """Yield the group in which `controller` accounts for this process, then its parents.

    A container may see only some of them.
    """
    for line in _OWN.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = _ROOT if number == "0" else _ROOT / controller
            group = root / path.lstrip("/")
            yield from (group, *(parent for parent in group.parents if parent.is_relative_to(root)))
