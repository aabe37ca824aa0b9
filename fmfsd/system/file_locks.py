"""Locks of processes that share a file system: the kernel's (flock) or, where there is none, files that one can create.

The kernel frees its lock when the holder ends, however it ends. A lock file of a process that was killed stays.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Self

from fmfsd.system.atomic_files import SHARED, mount_of, nearest_visible, read_json

VARIABLE = "FMFSD_LOCK"
RETRY_S, REMIND_S = 0.1, 30.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)

Release = Callable[[], None]


class LockHeldError(OSError):
    """Another process holds the lock."""


class LockLeftError(LockHeldError):
    """A process that has ended left its lock file behind."""


class LockUnsupportedError(OSError):
    """The file system has no locks."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock. `born` is its start in the kernel's ticks, as process ids are used again."""

    host: str
    pid: int
    born: int
    since: float

    @classmethod
    def me(cls) -> Self:
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()), time.time())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the holder that the file `path` names, or None if it names none."""
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_known_to_live(self) -> bool:
        """Whether it is a process of this host and alive; of other hosts nothing is known."""
        return self.is_here and _born(self.pid) == self.born

    @property
    def has_ended(self) -> bool:
        """Whether it was a process of this host and is known to have ended."""
        return self.is_here and not self.is_known_to_live

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock `path`. LockHeldError if another process does, LockUnsupportedError if the file system has none."""
    release = _hold(path)
    try:
        yield
    finally:
        release()


@contextmanager
def wait_for_lock(path: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock `path` as soon as it is free; `warn` is told at once, and then now and then, who holds it.

    Raises LockLeftError for a lock that nobody will release, and LockUnsupportedError.
    """
    release, remind_at = None, time.monotonic()
    while release is None:
        try:
            release = _hold(path)
        except LockLeftError:
            raise
        except LockHeldError as error:
            if time.monotonic() >= remind_at:
                warn(f"waiting: {error}")
                remind_at = time.monotonic() + REMIND_S
            time.sleep(RETRY_S)
    try:
        yield
    finally:
        release()


def choose_method(environment: Mapping[str, str]) -> None:
    """For the rest of this process, lock by files if FMFSD_LOCK=file says so, else by the kernel."""
    global _hold
    _hold = _create_exclusively if environment.get(VARIABLE) == "file" else _hold_flock


def lock_file(path: Path) -> Path:
    """Return the file that is created to hold the lock `path` where the kernel has no locks."""
    return path.with_name(f"{path.name}.held")


def problem_of(path: Path) -> str:
    """Return why the lock `path` could not be held now, as far as that shows without holding it; empty if it could."""
    if _hold is _create_exclusively:
        return _problem_of_file(lock_file(path)) if lock_file(path).exists() else ""
    try:
        with NamedTemporaryFile(dir=nearest_visible(path.parent), prefix=".fmfsd-lock-") as file:
            _flock(file.fileno(), path)
    except LockUnsupportedError as error:
        return str(error)
    except OSError:  # a folder that can't be written, or a full disk, is for others to report
        pass
    return ""


def _hold_flock(path: Path) -> Release:
    descriptor = _opened(path)
    try:
        _flock(descriptor, path)
        if os.fstat(descriptor).st_nlink == 0:  # removed between the two calls: others lock another file of this name
            raise LockHeldError(f"{path} was replaced")
        with suppress(OSError):  # without our name in it, it is held all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _own_name(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return partial(os.close, descriptor)


def _opened(path: Path) -> int:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDWR, SHARED)
    except PermissionError:  # a colleague's file, which can be locked but not written
        if not path.exists():
            raise
        return os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # the latter on some network file systems
        holder = Holder.read(path)
        raise LockHeldError(f"{path} is locked by {holder or 'another process'}") from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        ways = f"use a folder on another file system, or lock by files there: set {VARIABLE}=file for all commands"
        raise LockUnsupportedError(
            f"{path}: the file system of {mount_of(path)} does not support locks (flock: {error.strerror}): {ways}"
        ) from error


def _create_exclusively(path: Path) -> Release:
    marker = lock_file(path)
    try:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, SHARED)
    except FileExistsError as error:
        holder = Holder.read(marker)
        kind = LockLeftError if holder is not None and holder.has_ended else LockHeldError
        raise kind(_problem_of_file(marker)) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(_own_name())
    return partial(marker.unlink, missing_ok=True)


def _problem_of_file(marker: Path) -> str:
    holder = Holder.read(marker)
    if holder is not None and holder.has_ended:
        return f"{marker} was left behind by {holder}, which has ended: `rm {marker}`"
    return f"{marker} is held by {holder or 'another process'}; if that process has ended, `rm {marker}`"


def _own_name() -> bytes:
    return json.dumps(asdict(Holder.me())).encode()


def _born(pid: int) -> int:
    """-1 for a process that is not there, or has ended and is only waited for by its parent."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return -1 if state in "ZX" else int(others[18])
    except (OSError, ValueError, IndexError):
        return -1


_hold: Callable[[Path], Release] = _hold_flock
