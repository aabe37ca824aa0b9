"""Cache directory of this user: the default folder, or a private temporary one if the default can't be used."""

import os
import pwd
import stat
import tempfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from fmfsd.system.atomic_files import is_private, nearest_visible

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (only private folders there are used)
_NO_CACHE = Path(os.devnull)
"""A path in which no file can be created, so that nothing is cached."""


def cache_home(environment: Mapping[str, str]) -> Path:
    """Return the cache directory: `XDG_CACHE_HOME` if it is an absolute path, else `~/.cache`.

    If that can't be created, can't be written, or does not allow programs, create and return a private temporary
    folder.
    """
    default = _default_folder(environment)
    return default if default is not None and not _find_problem(default) else _create_private_folder()


def cache_problem(environment: Mapping[str, str]) -> str:
    """Return why the default folder is not used; empty if it is."""
    default = _default_folder(environment)
    if default is None:
        return f"HOME is not set, and this machine does not know user {os.getuid()}"
    return _find_problem(default)


def cache_note(environment: Mapping[str, str]) -> str:
    """Return a line with the cache directory and the reason for it; empty if it is the default folder."""
    problem = cache_problem(environment)
    return f"caches are in {cache_home(environment)}, because {problem}" if problem else ""


def complete_environment(environment: MutableMapping[str, str]) -> str:
    """Set HOME, USER and cache directories in `environment` where they are missing or unusable.

    Return the `cache_note`.
    """
    if note := cache_note(environment):
        caches = str(cache_home(environment))
        environment.update({"XDG_CACHE_HOME": caches, **({} if _find_home(environment) else {"HOME": caches})})
        environment.setdefault("TRITON_CACHE_DIR", f"{caches}/triton")
    if _find_problem(Path(tempfile.gettempdir())):
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{cache_home(environment)}/torchinductor")
    if not (environment.get("LOGNAME") or environment.get("USER") or _passwd_entry()):
        environment["USER"] = f"user-{os.getuid()}"  # torch uses it in a folder's name
    return note


def _default_folder(environment: Mapping[str, str]) -> Path | None:
    configured, home = Path(environment.get("XDG_CACHE_HOME", "")), _find_home(environment)
    if configured.is_absolute():
        return configured
    return home / ".cache" if home is not None else None


def _find_home(environment: Mapping[str, str]) -> Path | None:
    if environment.get("HOME"):
        return Path(environment["HOME"])
    entry = _passwd_entry()
    return Path(entry.pw_dir) if entry is not None else None


def _passwd_entry() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None


def _find_problem(folder: Path) -> str:
    """Return why `folder` can't be used for compiled programs; empty if it can."""
    visible = nearest_visible(folder.absolute())
    if not os.access(visible, os.W_OK | os.X_OK) or not visible.is_dir():
        return f"{folder} can't be created" if visible != folder else f"{folder} can't be written"
    if folder.name == _private_name() and folder.exists() and not _is_private_folder(folder):
        return f"{folder} may belong to another user"  # the variable may come from a process on another machine
    if os.statvfs(visible).f_flag & os.ST_NOEXEC:
        return f"{folder} is on a file system that is mounted noexec"
    return ""


def _create_private_folder() -> Path:
    """Return a private folder in the first usable temporary folder; other users can't write to it."""
    for parent in map(Path, (tempfile.gettempdir(), *_TEMPORARY)):
        folder = parent / _private_name()
        with suppress(OSError):
            if not _find_problem(parent):
                folder.mkdir(mode=0o700, exist_ok=True)
                if _is_private_folder(folder):
                    return folder
    return _NO_CACHE


def _private_name() -> str:
    return f"fmfsd-cache-{os.getuid()}"


def _is_private_folder(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and is_private(status)
