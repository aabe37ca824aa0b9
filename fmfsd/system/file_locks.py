"""Locks between processes that share a file system: flock or, where that is not supported, exclusive lock files.

The kernel releases a flock when its holder ends in any way. A lock file remains if its process is killed.
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

from fmfsd.system.atomic_files import SHARED_MODE, describe_mount, nearest_visible, read_json

LOCK_VARIABLE = "FMFSD_LOCK"
RETRY_S, REMIND_S = 0.1, 30.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)

Release = Callable[[], None]


class LockHeldError(OSError):
    """Another process holds the lock."""


class StaleLockError(LockHeldError):
    """A process that has ended left its lock file behind."""


class LockUnsupportedError(OSError):
    """The file system does not support flock."""


@dataclass(frozen=True)
class LockHolder:
    """A process that holds a lock. `born` is its start time in kernel ticks, because process ids are reused."""

    host: str
    pid: int
    born: int
    since: float

    @classmethod
    def current(cls) -> Self:
        return cls(socket.gethostname(), os.getpid(), _read_start_ticks(os.getpid()), time.time())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the holder in the file `path`, or None if it has none."""
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_local(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """True if the process is on this host and alive; always false for other hosts."""
        return self.is_local and _read_start_ticks(self.pid) == self.born

    @property
    def has_ended(self) -> bool:
        """True if the process was on this host and has ended; always false for other hosts."""
        return self.is_local and not self.is_alive

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
    """Wait for the lock `path` and hold it; `warn` gets its holder at once and every REMIND_S seconds.

    Raises StaleLockError for the lock file of a process that has ended, and LockUnsupportedError.
    """
    release, remind_at = None, time.monotonic()
    while release is None:
        try:
            release = _hold(path)
        except StaleLockError:
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


def choose_lock_method(environment: Mapping[str, str]) -> None:
    """Use lock files for the rest of this process if FMFSD_LOCK=file, else flock."""
    global _hold
    _hold = _create_exclusively if environment.get(LOCK_VARIABLE) == "file" else _hold_flock


def lock_file(path: Path) -> Path:
    """Return the lock file of the lock `path`, for file systems without flock."""
    return path.with_name(f"{path.name}.held")


def find_lock_problem(path: Path) -> str:
    """Return why the lock `path` can't be held now, as far as a check without holding it shows; empty if it can."""
    if _hold is _create_exclusively:
        return _describe_holder(lock_file(path)) if lock_file(path).exists() else ""
    try:
        with NamedTemporaryFile(dir=nearest_visible(path.parent), prefix=".fmfsd-lock-") as file:
            _flock(file.fileno(), path)
    except LockUnsupportedError as error:
        return str(error)
    except OSError:  # other checks report folders that can't be written and full disks
        pass
    return ""


def _hold_flock(path: Path) -> Release:
    descriptor = _open(path)
    try:
        _flock(descriptor, path)
        if os.fstat(descriptor).st_nlink == 0:  # removed between the two calls: other processes lock a new file
            raise LockHeldError(f"{path} was replaced")
        with suppress(OSError):  # the lock is held even if the holder can't be written
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _serialize_own_holder(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return partial(os.close, descriptor)


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDWR, SHARED_MODE)
    except PermissionError:  # another user's file, which can be locked but not written
        if not path.exists():
            raise
        return os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # PermissionError on some network file systems
        holder = LockHolder.read(path)
        raise LockHeldError(f"{path} is locked by {holder or 'another process'}") from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        remedy = f"use another file system, or set {LOCK_VARIABLE}=file for all commands to use lock files"
        raise LockUnsupportedError(
            f"{path}: the file system of {describe_mount(path)} does not support locks "
            f"(flock: {error.strerror}): {remedy}"
        ) from error


def _create_exclusively(path: Path) -> Release:
    marker = lock_file(path)
    try:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, SHARED_MODE)
    except FileExistsError as error:
        holder = LockHolder.read(marker)
        kind = StaleLockError if holder is not None and holder.has_ended else LockHeldError
        raise kind(_describe_holder(marker)) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(_serialize_own_holder())
    return partial(marker.unlink, missing_ok=True)


def _describe_holder(marker: Path) -> str:
    holder = LockHolder.read(marker)
    if holder is not None and holder.has_ended:
        return f"{marker} was left behind by {holder}, which has ended: `rm {marker}`"
    return f"{marker} is held by {holder or 'another process'}; if that process has ended, `rm {marker}`"


def _serialize_own_holder() -> bytes:
    return json.dumps(asdict(LockHolder.current())).encode()


def _read_start_ticks(pid: int) -> int:
    """Return the start time of a process in kernel ticks; -1 if it does not exist or is a zombie.

    psutil's create_time moves when the clock is set, so it can't identify a process days later.
    """
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return -1 if state in "ZX" else int(others[18])
    except (OSError, ValueError, IndexError):
        return -1


_hold: Callable[[Path], Release] = _hold_flock
