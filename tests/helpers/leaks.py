"""Leak detection: processes, listeners, threads, files and environment variables that a test leaves behind."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil

TEST_ID = "FMFSD_TEST_ID"
"""An environment variable that every process started by a test inherits, so that orphans are found too."""

CHECKOUT = Path(__file__).parents[2]
SETTLE_S = 5.0
_HELPERS = (vars(forkserver)["_forkserver"], vars(resource_tracker)["_resource_tracker"])
_WANDB_SUFFIXES = ("wandb-media", "wandb-artifacts")
"""Folders that W&B creates when it is imported (by timm, too), and that a process that is killed leaves behind."""


Snapshot = Mapping[str, frozenset[str]]
"""Names of the existing objects, by kind."""


def snapshot_resources() -> Snapshot:
    """Return the listeners, threads, files and environment variables, which a test could change in its own process."""
    return {"listener": _listeners(), "thread": _threads(), "file": _files(), "variable": _variables()}


def snapshot_processes() -> Snapshot:
    """Return our descendants and every process with our test id, without Python's forkserver and resource tracker."""
    return {"process": _processes()}


def leaks_since(before: Snapshot, take: Callable[[], Snapshot]) -> list[str]:
    """Return what `take` finds in addition to `before`, after waiting up to SETTLE_S for it to disappear."""
    deadline = time.monotonic() + SETTLE_S
    while (leaks := _added(before, take())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return leaks


def _added(before: Snapshot, now: Snapshot) -> list[str]:
    """Return the additions as texts; a variable that was removed or changed counts too."""
    changes = {kind: now[kind] ^ before[kind] if kind == "variable" else now[kind] - before[kind] for kind in now}
    return [f"{kind} {each}" for kind, added in changes.items() for each in sorted(added)]


def _processes() -> frozenset[str]:
    helpers = {os.getpid(), *(vars(server).get(name) for server in _HELPERS for name in ("_forkserver_pid", "_pid"))}
    mark = f"{TEST_ID}={os.environ[TEST_ID]}".encode()
    descendants = {child.pid for child in psutil.Process().children(recursive=True)}
    pids = {pid for pid in psutil.pids() if pid in descendants or mark in _environment(pid)}
    return frozenset(f"{pid} {_command(pid)}" for pid in pids - helpers if _command(pid))


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> str:
    """Return the command line; empty if the process has ended."""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())[:200]
    except psutil.Error:
        return ""


def _listeners() -> frozenset[str]:
    connections = psutil.Process().net_connections(kind="inet")
    return frozenset(f"{each.laddr}" for each in connections if each.status == psutil.CONN_LISTEN)


def _threads() -> frozenset[str]:
    return frozenset(f"{thread.name} {thread.ident}" for thread in threading.enumerate())


def _files() -> frozenset[str]:
    """Return the files in the checkout and the temporary folder, without those of Python's helpers, torch and W&B."""
    ignored = {".git", ".venv", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".import_linter_cache"}
    top_level = [path for path in CHECKOUT.iterdir() if path.name not in ignored]
    nested = [path for folder in top_level if folder.is_dir() for path in _below(str(folder))]
    temporary = [
        path
        for path in Path(tempfile.gettempdir()).iterdir()
        if not path.name.startswith(("pymp-", "torchinductor_")) and not path.name.endswith(_WANDB_SUFFIXES)
    ]
    return frozenset(map(str, (*top_level, *nested, *temporary)))


def _below(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (f"{path}/{name}" for name in (*folders, *files))


def _variables() -> frozenset[str]:
    """Return the environment variables, without those that pytest and torch set themselves."""
    ignored = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")
    return frozenset(f"{name}={value}" for name, value in os.environ.items() if name not in ignored)
