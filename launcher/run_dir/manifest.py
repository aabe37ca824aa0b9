"""What a run was made with: versions, commit, data, command lines. Read by people and reports."""

import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fmfsd
from fmfsd.config import RunConfig
from fmfsd.data.shards.index import set_folder
from fmfsd.system.atomic_files import sha256
from launcher.config.environment import is_secret, without_passwords
from launcher.transport.local_commands import said_here

COMMIT_FILE = "commit"
"""Where a copy of the program, which has no history, says what it is a copy of: the commit, then uncommitted files."""
OWN_PACKAGES = ("fmfsd", "launcher")
GIT_S = 5.0
_SOURCE = ("commit", "uncommitted")
PACKAGES = ("fmfsd", "torch", "torchvision", "numpy", "safetensors", "pydantic", "timm")


def manifest(config: RunConfig, first: Mapping[str, Any]) -> dict[str, Any]:
    """Of a new run, whose `first` launch has this entry. `started` is in seconds since 1970; `data` is the SHA-256 sum
    of the set's index, which has every shard's; `launches` gets an entry for each launch that goes on with the run."""
    data = sha256(set_folder(config.data) / "index.json")
    return {"started": first["started"], "data": data, "seed": config.seed, "launches": [first]}


def launch_entry(
    argv: Sequence[str], *, hardware: Mapping[str, Any] | None = None, job: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One launch of a run. `hardware`: that of each host, where it is known; `job`: the batch job that it is in.

    `uncommitted` are the files of ours that differ from `commit`, as `git status --short` prints them; None if unknown.
    `changes` will be those of the run's config since the launch before.
    """
    checkout = Path(fmfsd.__file__).parents[1]
    return {
        "started": time.time(),
        "command": masked(argv),
        "versions": versions(PACKAGES),
        "commit": commit_of(checkout),
        "uncommitted": uncommitted_files(checkout),
        "hardware": dict(hardware or {}),
        "changes": [],
        **({"job": dict(job)} if job is not None else {}),
    }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Python's and these packages'; None of one that is not installed."""
    return {"python": sys.version.split()[0], **{name: _version(name) for name in packages}}


def software_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was at the launch `before`: results may then differ in the last bits."""
    one, other = ({**entry["versions"], **{name: entry.get(name) for name in _SOURCE}} for entry in (before, now))
    return [f"{name}: {one.get(name)} -> {value}" for name, value in other.items() if one.get(name) != value]


def masked(argv: Sequence[str]) -> list[str]:
    """The command line without secrets."""
    return [_masked(part) for part in argv]


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


def uncommitted_files(checkout: Path) -> list[str] | None:
    """Those of our packages, as `git status --short` prints them; None where git can't tell.

    A copy of the program knows those of its original.
    """
    said = checkout / COMMIT_FILE
    if said.is_file():
        return said.read_text("utf-8").splitlines()[1:]
    if not (checkout / ".git").exists():
        return None
    command = ("git", "-C", str(checkout), "status", "--short", "--", *OWN_PACKAGES)
    code, output, _ = said_here(command, deadline_s=GIT_S, more={"GIT_OPTIONAL_LOCKS": "0"})
    return output.splitlines() if code == 0 else None


def commit_of(checkout: Path) -> str | None:
    """The commit that is checked out, or was when the copy was made; None for an installed package."""
    said = checkout / COMMIT_FILE
    try:
        if said.is_file():
            return said.read_text("utf-8").splitlines()[0]
        own, git = _git_folders(checkout)
        head = (own / "HEAD").read_text("utf-8").strip()
        name = head.removeprefix("ref: ")
        if name == head or (git / name).exists():
            return head if name == head else (git / name).read_text("utf-8").strip()
        lines = map(str.split, (git / "packed-refs").read_text("utf-8").splitlines())
        return next((line[0] for line in lines if line[1:] == [name]), None)
    except (OSError, ValueError):
        return None


def _git_folders(checkout: Path) -> tuple[Path, Path]:
    """That of the checkout's own head, and that of the branches: another one in a worktree. OSError."""
    git = checkout / ".git"
    if git.is_dir():
        return git, git
    own = checkout / git.read_text("utf-8").strip().removeprefix("gitdir: ")
    common = own / "commondir"
    return own, own / common.read_text("utf-8").strip() if common.exists() else own
