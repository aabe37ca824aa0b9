"""What the control group of this process allows and counts, in both versions of Linux's. The standard library only."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_limit() -> int | None:
    """Bytes that all of this process's group, or of one that it is in, may use together; None: that is not told."""
    limits = []
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((folder / name).read_text()))
    return min(limits, default=None)


def cpu_limit() -> float | None:
    """Cores that this process's group, or one of its parents, may use on average; None: there is no limit."""
    limits = []
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError):  # "max" is no number
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            limits.append(quota / period)
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            limits += [quota / period] if quota > 0 else []
    return min(limits, default=None)


def oom_kills() -> int:
    """How often the kernel has killed for memory in this process's group; 0 where that is not told."""
    for folder in _groups("memory"):
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                found = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(found.get("oom_kill", 0))
    return 0


def _groups(controller: str) -> Iterator[Path]:
    """The group in which `controller` counts this process, then its parents: a container may see only some of them."""
    for line in _OWN.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = _ROOT if number == "0" else _ROOT / controller
            own = root / path.lstrip("/")
            yield from (own, *(above for above in own.parents if above.is_relative_to(root)))
