"""Host probe: what a node's machine offers and which files it sees, as its agent reports it. Standard library only."""

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
from launcher.agent.available_resources import Resources
from launcher.agent.hardware_record import read_hardware
from launcher.agent.import_paths import find_import_differences
from launcher.agent.network import interface_addresses, select_machine_variables

PACKAGES = ("fmfsd", "torch", "torchvision", "numpy")
OPTIONAL_PACKAGES = ("deepspeed", "ray", "timm")
OWN_PACKAGES = ("fmfsd", "launcher")


def probe_machine(query: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return this machine's software, cores, bytes of memory, GPUs, hardware, interfaces, and Unix time in seconds.

    In addition, what `query` asks for: whether the folder `cwd` and the file `marker` exist, whether `parent` is
    writable, the SHA-256 sum of the file `index` (None: unreadable), the health (`condition`) of this machine for work
    in that folder, and the import differences of a worker with `variables`.
    """
    return {
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in (*PACKAGES, *OPTIONAL_PACKAGES)},
        "source": _hash_sources(),
        **asdict(Resources.detect(environment)),
        "hardware": read_hardware(),
        "interfaces": interface_addresses(),
        "imports": _imports(query, environment),
        **{name: inspect(query[name]) for name, inspect in _INSPECTIONS.items() if query.get(name)},
        "time": time.time(),
    }


def _imports(query: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    if query.get("variables") is None or query.get("wrapped"):  # inside a wrapper, workers inherit its variables
        return {}
    return find_import_differences({**select_machine_variables(environment), **query["variables"]}, environment)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hash_sources() -> str:
    """Return the SHA-256 sum of our own source code, so that another checkout is noticed."""
    digest = hashlib.sha256()
    for name, path in _source_files():
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _source_files() -> Iterator[tuple[str, Path]]:
    for package in OWN_PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            yield from ((f"{package}/{path.relative_to(folder)}", path) for path in sorted(folder.rglob("*.py")))


def _hash_file(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


_INSPECTIONS = {
    "cwd": os.path.isdir,
    "marker": os.path.exists,
    "parent": lambda path: os.access(path, os.W_OK | os.X_OK),
    "index": _hash_file,
    "condition": health.collect_health,
}
