"""What a node's machine offers and sees, told by its agent. The standard library only."""

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher.agent import health
from launcher.agent.hardware import hardware
from launcher.agent.import_paths import differing_imports
from launcher.agent.network import interface_addresses, own_variables
from launcher.agent.resources import Resources

PACKAGES = ("fmfsd", "torch", "torchvision", "numpy")
EXTRAS = ("deepspeed", "ray", "timm")
OWN_PACKAGES = ("fmfsd", "launcher")


def look(order: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """What there is: software, cores, bytes of memory, GPUs, hardware, network interfaces; last the Unix time in s.

    And what `order` asks for: whether the folder `cwd` and the file `marker` are there, whether one can write in
    `parent`, the SHA-256 sum of the file `index` (None: it can't be read), the `condition` for work in that folder, the
    `differing_imports` of a worker with `variables`.
    """
    return {
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        "source": _sources(),
        **asdict(Resources.detect(environment)),
        "hardware": hardware(),
        "interfaces": interface_addresses(),
        "imports": _imports(order, environment),
        **{name: see(order[name]) for name, see in _SEES.items() if order.get(name)},
        "time": time.time(),
    }


def _imports(order: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    if order.get("variables") is None or order.get("wrapped"):  # behind a wrapper workers inherit what it sets
        return {}
    return differing_imports({**own_variables(environment), **order["variables"]}, environment)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sources() -> str:
    """The sum of our own code, so that another checkout is noticed."""
    sums = hashlib.sha256()
    for name, path in _own_files():
        sums.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return sums.hexdigest()


def _own_files() -> Iterator[tuple[str, Path]]:
    for package in OWN_PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            yield from ((f"{package}/{path.relative_to(folder)}", path) for path in sorted(folder.rglob("*.py")))


def _sum(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


_SEES = {
    "cwd": os.path.isdir,
    "marker": os.path.exists,
    "parent": lambda path: os.access(path, os.W_OK | os.X_OK),
    "index": _sum,
    "condition": health.told,
}
