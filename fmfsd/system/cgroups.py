"""The control groups of this process, in both versions of Linux's."""

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[Path]:
    """The folder of the group in which `controller` counts this process, then those of its parents.

    A container may see only some of these folders.
    """
    for line in OWN.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = ROOT if number == "0" else ROOT / controller
            own = root / path.lstrip("/")
            yield from (own, *(above for above in own.parents if above.is_relative_to(root)))
