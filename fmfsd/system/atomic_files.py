"""Atomic and durable file writes, safe reads, and checks of file ownership and permissions."""

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

PRIVATE_MODE, SHARED_MODE = 0o600, 0o666
"""Modes of new files: for this user only, and for every user that the umask allows."""


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True, mode: int = PRIVATE_MODE) -> None:
    """Write `path` atomically (temporary file, then rename); with `durable` it survives a power loss (fsync)."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                flush_to_disk(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True, mode: int = PRIVATE_MODE) -> None:
    write_atomic(path, json.dumps(content, indent=2) + "\n", durable=durable, mode=mode)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file `path`. OSError if it can't be read, ValueError if it is not a JSON object."""
    return parse_json_object(path.read_bytes(), path)


def parse_json_object(data: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in `data`, read from `path`. ValueError if there is none."""
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_regular_file(path: Path) -> bytes:
    """Return the content of a regular file. OSError for a symbolic link, which may lead anywhere, and for a pipe, which
    may never end."""
    with _open_regular(path) as file:
        return file.read()


def read_private(path: Path) -> bytes:
    """Return the content of a regular file. OSError as in `read_regular_file`, and if other users may write to it."""
    with _open_regular(path) as file:
        require_private(path, os.fstat(file.fileno()))
        return file.read()


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        yield file


class NotPrivateError(OSError):
    """Other users may write to a file or folder that must be private."""


def require_private(path: Path, status: os.stat_result) -> None:
    """Raise NotPrivateError if other users may write to `path` and so control its content."""
    if stat.S_ISLNK(status.st_mode):
        raise NotPrivateError(f"{path} is a symbolic link and must be your own regular file: `rm {path}`")
    if status.st_uid != os.getuid():
        owner = user_name(status.st_uid)
        raise NotPrivateError(f"{path} belongs to {owner} and must be your own: `mv {path} {path}.old`")
    if not is_private(status):
        mode = stat.S_IMODE(status.st_mode)
        raise NotPrivateError(f"{path} has mode {mode:04o}, so other users can write to it: `chmod go-w {path}`")


def is_private(status: os.stat_result) -> bool:
    """Return whether the file belongs to this user and no other user may write to it."""
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def user_name(uid: int) -> str:
    """Return the name of a user, or `user 1234` if this machine does not know the id."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def access_remedy(path: Path, wanted: str = "go+rX") -> str:
    """Return a text with the owner of `path` and the command that grants other users access."""
    visible = nearest_visible(path)
    owner = user_name(visible.stat().st_uid)
    return f"{visible} belongs to {owner}, who can grant access with `chmod -R {wanted} {visible}`"


def nearest_visible(path: Path) -> Path:
    """Return `path`, or its nearest parent folder that exists and is visible to this user."""
    return next(each for each in (path, *path.parents) if os.path.exists(each))


def free_space(folder: Path) -> tuple[int, int]:
    """Return the bytes and the number of files that this user can still write there."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize, status.f_favail


def flush_to_disk(descriptor: int) -> None:
    """Flush a file or folder (fsync), if supported: CIFS and some FUSE file systems can't flush folders."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power loss (a rename changes the folder, not the file)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def rename_no_replace(temporary: Path, path: Path) -> None:
    """Rename `temporary`, in the same folder, to `path`. FileExistsError if that exists: never overwrites a file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system: an empty file reserves the name for a moment
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SHARED_MODE))
        _replace_reserved(temporary, path)
    else:
        temporary.unlink()


def _replace_reserved(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except OSError:
        path.unlink()
        raise


def describe_mount(path: Path) -> str:
    """Return the mount point of `path` and the type of its file system, as `/data (nfs4)`."""
    visible = nearest_visible(path.absolute()).resolve()
    point = next(str(folder) for folder in (visible, *visible.parents) if os.path.ismount(folder))
    with suppress(OSError):
        for line in reversed(Path("/proc/self/mounts").read_text("utf-8").splitlines()):
            _, mounted, kind, *_ = line.split(" ")
            if mounted == point:
                return f"{point} ({kind})"
    return point


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
