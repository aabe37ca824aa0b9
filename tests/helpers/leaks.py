"""What a test may not leave behind: processes, listeners, threads, files, variables."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Surroundings:
    """Everything around a test that it could change and not put back."""

    processes: frozenset[str]
    listeners: frozenset[str]
    threads: frozenset[str]
    files: frozenset[str]
    variables: frozenset[tuple[str, str]]

    @classmethod
    def now(cls) -> "Surroundings":
        return cls(_processes(), _listeners(), _threads(), _files(), _variables())

    def left_since(self, before: "Surroundings") -> list[str]:
        """What is there now and was not before, or the other way round for variables."""
        return [
            *(f"process {each}" for each in self.processes - before.processes),
            *(f"listener {each}" for each in self.listeners - before.listeners),
            *(f"thread {each}" for each in self.threads - before.threads),
            *(f"file {each}" for each in self.files - before.files),
            *(f"variable {name}" for name, _ in self.variables ^ before.variables),
        ]


def leaks_since(before: Surroundings) -> list[str]:
    """What a test left, after giving processes a moment to end."""
    deadline = time.monotonic() + SETTLE_S
    while (left := Surroundings.now().left_since(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _processes() -> frozenset[str]:
    """Our descendants and every process with our test id, without Python's own helpers."""
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


def _variables() -> frozenset[tuple[str, str]]:
    """Without the one that pytest and the one that torch, when it first makes an optimizer, set by themselves."""
    ignored = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")
    return frozenset((name, value) for name, value in os.environ.items() if name not in ignored)
