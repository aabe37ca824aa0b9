"""What the control group of this process allows and counts, in both versions of Linux's. The standard library only."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """Bytes that all of this process's group, or of one that it is in, may use together; None: that is not told."""
    limits = []
    for folder in _memory_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((folder / name).read_text()))
    return min(limits, default=None)


def oom_kills() -> int:
    """How often the kernel has killed for memory in this process's group; 0 where that is not told."""
    for folder in _memory_groups():
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                found = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(found.get("oom_kill", 0))
    return 0


def _memory_groups() -> Iterator[Path]:
    """The group that counts this process's memory, and those that it is in: a container may see only these."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            root = _ROOT if number == "0" else _ROOT / "memory"
            own = root / path.lstrip("/")
            yield own
            yield from (above for above in own.parents if above.is_relative_to(root))
