"""Checks of the software of this machine: torch and torchvision, and versions of torch that were tested."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fmfsd.errors import Problem

TESTED_TORCH = ("2.11", "2.16")
"""First version that works, and first version that is untested."""


def check_software() -> Iterator[Problem]:
    for package in ("torch", "torchvision"):
        if find_spec(package) is None:
            yield Problem(package, "not installed in this environment: install fmfsd with its dependencies")
            return
    first, untested = (tuple(map(int, text.split("."))) for text in TESTED_TORCH)
    try:
        installed = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    if not first <= installed < untested:
        yield Problem("torch", f"version {version('torch')} is not between {TESTED_TORCH[0]} and {TESTED_TORCH[1]}")
