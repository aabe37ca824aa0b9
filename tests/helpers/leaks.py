"""What a test may not leave behind: processes, listeners, threads, files, variables."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil

TEST_ID = "FMFSD_TEST_ID"
"""A variable that reaches every process that a test starts, so that orphans are found too."""

CHECKOUT = Path(__file__).parents[2]
SETTLE_S = 5.0
_HELPERS = (vars(forkserver)["_forkserver"], vars(resource_tracker)["_resource_tracker"])
_OF_WANDB = ("wandb-media", "wandb-artifacts")
"""Made where it is imported, as timm does, and left by processes that end at once."""


Snapshot = Mapping[str, frozenset[str]]
"""What is there, by kind."""


def surroundings() -> Snapshot:
    """All that a test could change within its own process and not put back."""
    return {"listener": _listeners(), "thread": _threads(), "file": _files(), "variable": _variables()}


def running_processes() -> Snapshot:
    """Our descendants and every process with our test id, without Python's own helpers."""
    return {"process": _processes()}


def leaks_since(before: Snapshot, take: Callable[[], Snapshot]) -> list[str]:
    """What `take` finds in addition to `before`, after it has had a moment to end."""
    deadline = time.monotonic() + SETTLE_S
    while (left := _added(before, take())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _added(before: Snapshot, now: Snapshot) -> list[str]:
    """A variable that is gone or changed counts too."""
    found = {kind: now[kind] ^ before[kind] if kind == "variable" else now[kind] - before[kind] for kind in now}
    return [f"{kind} {each}" for kind, added in found.items() for each in sorted(added)]


def _processes() -> frozenset[str]:
    helpers = {os.getpid(), *(vars(server).get(name) for server in _HELPERS for name in ("_forkserver_pid", "_pid"))}
    mark = f"{TEST_ID}={os.environ[TEST_ID]}".encode()
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    found = {pid for pid in psutil.pids() if pid in ours or mark in _environment(pid)}
    return frozenset(f"{pid} {_command(pid)}" for pid in found - helpers if _command(pid))


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> str:
    """Empty for a process that has ended."""
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
    """In the checkout and in the folder for temporary files, without Python's own helpers', torch's cache and W&B's."""
    ignored = {".git", ".venv", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".import_linter_cache"}
    places = [path for path in CHECKOUT.iterdir() if path.name not in ignored]
    inside = [path for place in places if place.is_dir() for path in _below(str(place))]
    temporary = [
        path
        for path in Path(tempfile.gettempdir()).iterdir()
        if not path.name.startswith(("pymp-", "torchinductor_")) and not path.name.endswith(_OF_WANDB)
    ]
    return frozenset(map(str, (*places, *inside, *temporary)))


def _below(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (f"{path}/{name}" for name in (*folders, *files))


def _variables() -> frozenset[str]:
    """Without the one that pytest and the one that torch, when it first makes an optimizer, set by themselves."""
    ignored = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")
    return frozenset(f"{name}={value}" for name, value in os.environ.items() if name not in ignored)
