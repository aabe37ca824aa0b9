"""Files that appear whole or not at all, and that read back as written."""

import errno
import hashlib
import json
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PRIVATE, SHARED = 0o600, 0o666
"""Modes of new files: for this user alone, and for whoever the umask allows."""


def write_whole(path: Path, content: str | bytes, *, durable: bool = True, mode: int = PRIVATE) -> None:
    """Write beside `path`, then rename over it; `durable` also survives a power loss."""
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                flush_to_disk(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True, mode: int = PRIVATE) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n", durable=durable, mode=mode)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. OSError if it can't be read, ValueError if it is no JSON object."""
    return json_object(path.read_bytes(), path)


def json_object(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, which comes from `path`. ValueError if there is none."""
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_own(path: Path) -> bytes:
    """The content of a file of ours. OSError for a link, which may lead anywhere, and a pipe, which may never end."""
    with _opened(path) as file:
        return file.read()


def read_private(path: Path) -> bytes:
    """As `read_own`, and OSError too if others may have written it."""
    with _opened(path) as file:
        require_private(path, os.fstat(file.fileno()))
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        yield file


class NotPrivateError(OSError):
    """Other users may write to a file or folder that must be this user's alone."""


def require_private(path: Path, status: os.stat_result) -> None:
    """Raise NotPrivateError if other users may write to `path`, and so decide what is in it."""
    if stat.S_ISLNK(status.st_mode):
        raise NotPrivateError(f"{path} is a symbolic link and must be a file of your own: `rm {path}`")
    if status.st_uid != os.getuid():
        owner = user_name(status.st_uid)
        raise NotPrivateError(f"{path} belongs to {owner} and must be your own: `mv {path} {path}.old`")
    if not is_private(status):
        mode = stat.S_IMODE(status.st_mode)
        raise NotPrivateError(f"{path} has mode {mode:04o}, so other users can write to it: `chmod go-w {path}`")


def is_private(status: os.stat_result) -> bool:
    """Whether it belongs to this user, who alone may write to it."""
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def user_name(uid: int) -> str:
    """The name of a user, or `user 1234` if this machine knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def access_remedy(path: Path, wanted: str = "go+rX") -> str:
    """Return who can grant other users access to `path`, and the command for it."""
    place = nearest_visible(path)
    owner = user_name(place.stat().st_uid)
    return f"{place} belongs to {owner}, who can grant it with `chmod -R {wanted} {place}`"


def nearest_visible(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists as far as this user can see."""
    return next(each for each in (path, *path.parents) if os.path.exists(each))


def free_space(folder: Path) -> tuple[int, int]:
    """Bytes and files that this user can still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_favail


def flush_to_disk(descriptor: int) -> None:
    """Flush a file or folder, where its file system can: CIFS and some of FUSE refuse it for folders."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power loss (a rename lives in the folder, not in the file)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def give_name(beside: Path, path: Path) -> None:
    """Rename `beside`, in the same folder, to `path`. FileExistsError if that exists: nothing is overwritten."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links there: an empty file reserves the name for a moment
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SHARED))
        _replace_reserved(beside, path)
    else:
        beside.unlink()


def _replace_reserved(beside: Path, path: Path) -> None:
    try:
        os.replace(beside, path)
    except OSError:
        path.unlink()
        raise


def mount_of(path: Path) -> str:
    """Return the mount point of `path` and the type of its file system, as `/data (nfs4)`."""
    place = nearest_visible(path.absolute()).resolve()
    point = next(str(each) for each in (place, *place.parents) if os.path.ismount(each))
    with suppress(OSError):
        for line in reversed(Path("/proc/self/mounts").read_text("utf-8").splitlines()):
            _, mounted, kind, *_ = line.split(" ")
            if mounted == point:
                return f"{point} ({kind})"
    return point


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
