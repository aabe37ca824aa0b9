"""Control groups (cgroups v1 and v2) of this process."""

from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT, PROC_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def list_cgroups(controller: str) -> Iterator[Path]:
    """Yield the folder of this process's cgroup for `controller`, then those of its parent groups.

    A container may see only some of these folders.
    """
    for line in PROC_CGROUP.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = CGROUP_ROOT if number == "0" else CGROUP_ROOT / controller
            group = root / path.lstrip("/")
            yield from (group, *(parent for parent in group.parents if parent.is_relative_to(root)))
