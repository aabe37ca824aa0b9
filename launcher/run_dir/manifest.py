"""Manifest of a run: versions, commit, data set and command lines, for users and reports."""

import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fmfsd
from fmfsd.config import RunConfig
from fmfsd.data.shards.index import prepared_set_folder
from fmfsd.system.atomic_files import sha256
from launcher.config.environment import is_secret, mask_passwords
from launcher.transport.local_commands import run_captured

COMMIT_FILE = "commit"
"""In a copy of the program, which has no git history: the commit that was copied, then the uncommitted files."""
OWN_PACKAGES = ("fmfsd", "launcher")
GIT_TIMEOUT_S = 5.0
_SOURCE = ("commit", "uncommitted")
PACKAGES = ("fmfsd", "torch", "torchvision", "numpy", "safetensors", "pydantic", "timm")


def new_manifest(config: RunConfig, first: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a new run; `first` is the entry of its first launch.

    `started`: Unix time in s. `data`: SHA-256 sum of the data set's index, which contains the sums of all shards.
    `launches` gets an entry for each launch that resumes the run.
    """
    data = sha256(prepared_set_folder(config.data) / "index.json")
    return {"started": first["started"], "data": data, "seed": config.seed, "launches": [first]}


def new_launch_entry(
    argv: Sequence[str], *, hardware: Mapping[str, Any] | None = None, job: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the entry of one launch. `hardware`: by host, where known; `job`: the batch job that it runs in.

    `uncommitted`: our files that differ from `commit`, as `git status --short` prints them; None: unknown. `changes`:
    changes of the run's config since the previous launch, filled in later.
    """
    checkout = Path(fmfsd.__file__).parents[1]
    return {
        "started": time.time(),
        "command": mask_command(argv),
        "versions": installed_versions(PACKAGES),
        "commit": read_commit(checkout),
        "uncommitted": list_uncommitted_files(checkout),
        "hardware": dict(hardware or {}),
        "changes": [],
        **({"job": dict(job)} if job is not None else {}),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return the versions of Python and of `packages`; None for a package that is not installed."""
    return {"python": sys.version.split()[0], **{name: _version(name) for name in packages}}


def find_software_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences in software since the launch `before`, which may change the last bits of results."""
    old, new = ({**entry["versions"], **{name: entry.get(name) for name in _SOURCE}} for entry in (before, now))
    return [f"{name}: {old.get(name)} -> {value}" for name, value in new.items() if old.get(name) != value]


def mask_command(argv: Sequence[str]) -> list[str]:
    """Return the command line without secrets."""
    return [_mask_argument(part) for part in argv]


def _mask_argument(part: str) -> str:
    """Mask the value after a secret's name, as in `NAME=...` and `--env=NAME=...`, and passwords in URLs."""
    pieces = part.split("=")
    for number, name in enumerate(pieces[:-1], 1):
        if is_secret(name):
            return "=".join([*pieces[:number], "***"])
    return mask_passwords(part)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def list_uncommitted_files(checkout: Path) -> list[str] | None:
    """Return our uncommitted files as `git status --short` prints them; None if git can't tell.

    A copy of the program contains the list of its original.
    """
    commit_file = checkout / COMMIT_FILE
    if commit_file.is_file():
        return commit_file.read_text("utf-8").splitlines()[1:]
    if not (checkout / ".git").exists():
        return None
    command = ("git", "-C", str(checkout), "status", "--short", "--", *OWN_PACKAGES)
    code, output, _ = run_captured(command, timeout_s=GIT_TIMEOUT_S, extra_env={"GIT_OPTIONAL_LOCKS": "0"})
    return output.splitlines() if code == 0 else None


def read_commit(checkout: Path) -> str | None:
    """Return the commit that is checked out, or that a copy was made of; None for an installed package."""
    commit_file = checkout / COMMIT_FILE
    try:
        if commit_file.is_file():
            return commit_file.read_text("utf-8").splitlines()[0]
        git_dir, common_dir = _git_folders(checkout)
        head = (git_dir / "HEAD").read_text("utf-8").strip()
        ref = head.removeprefix("ref: ")
        if ref == head or (common_dir / ref).exists():
            return head if ref == head else (common_dir / ref).read_text("utf-8").strip()
        lines = map(str.split, (common_dir / "packed-refs").read_text("utf-8").splitlines())
        return next((line[0] for line in lines if line[1:] == [ref]), None)
    except (OSError, ValueError):
        return None


def _git_folders(checkout: Path) -> tuple[Path, Path]:
    """Return the git folder of the checkout's HEAD, and that of the branches, which differs in a worktree. OSError."""
    git = checkout / ".git"
    if git.is_dir():
        return git, git
    git_dir = checkout / git.read_text("utf-8").strip().removeprefix("gitdir: ")
    common_file = git_dir / "commondir"
    return git_dir, git_dir / common_file.read_text("utf-8").strip() if common_file.exists() else git_dir
