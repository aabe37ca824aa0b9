"""What a run was made with: versions, commit, data, command line. Written once, read by people and reports."""

import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fmfsd
from fmfsd.config import TrainConfig
from fmfsd.data.index import set_folder
from fmfsd.files import sha256
from launcher.environment import is_secret, without_passwords

PACKAGES = ("fmfsd", "torch", "torchvision", "numpy", "safetensors", "pydantic")


def manifest(config: TrainConfig, argv: Sequence[str]) -> dict[str, Any]:
    """`started` is in seconds since 1970; `data` is the SHA-256 sum of the set's index, which has every shard's."""
    return {
        "started": time.time(),
        "command": [_masked(part) for part in argv],
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
        "commit": _commit(Path(fmfsd.__file__).parents[1]),
        "data": sha256(set_folder(config.data) / "index.json"),
        "seed": config.seed,
    }


def _masked(part: str) -> str:
    """Without what stands behind a secret's name, as in `NAME=...` and `--env=NAME=...`, and without passwords."""
    pieces = part.split("=")
    for number, name in enumerate(pieces[:-1], 1):
        if is_secret(name):
            return "=".join([*pieces[:number], "***"])
    return without_passwords(part)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(checkout: Path) -> str | None:
    """The commit that is checked out where fmfsd was imported from; None for an installed package."""
    git = checkout / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        if name == head or (git / name).exists():
            return head if name == head else (git / name).read_text().strip()
        lines = map(str.split, (git / "packed-refs").read_text().splitlines())
        return next((line[0] for line in lines if line[1:] == [name]), None)
    except (OSError, ValueError):
        return None
