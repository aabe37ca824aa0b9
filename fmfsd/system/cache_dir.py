"""Where this user's caches are: the usual folder, or a private temporary one where that can't be used."""

import os
import pwd
import stat
import tempfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from fmfsd.system.atomic_files import is_private, nearest_visible

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (what is made there is private, or not used)
_NOWHERE = Path(os.devnull)
"""A place in which nothing can be made, so that nothing is cached."""


def cache_home(environment: Mapping[str, str]) -> Path:
    """Return `XDG_CACHE_HOME`, if it is an absolute path, or `~/.cache`; or a private temporary folder, which is made,
    if that can't be made, can't be written, or can't hold programs."""
    usual = _usual(environment)
    return usual if usual is not None and not _problem(usual) else _private_folder()


def cache_problem(environment: Mapping[str, str]) -> str:
    """Return why the usual folder is not used; empty if it is."""
    usual = _usual(environment)
    if usual is None:
        return f"HOME is not set, and this machine knows no user {os.getuid()}"
    return _problem(usual)


def cache_note(environment: Mapping[str, str]) -> str:
    """Return where caches are and why, in one line; empty if they are in the usual folder."""
    problem = cache_problem(environment)
    return f"caches are in {cache_home(environment)}, because {problem}" if problem else ""


def complete_environment(environment: MutableMapping[str, str]) -> str:
    """Give packages a home, a user name and folders for their caches, where the environment has none that is usable.

    Return the `cache_note`.
    """
    if note := cache_note(environment):
        caches = str(cache_home(environment))
        environment.update({"XDG_CACHE_HOME": caches, **({} if _home(environment) else {"HOME": caches})})
        environment.setdefault("TRITON_CACHE_DIR", f"{caches}/triton")
    if _problem(Path(tempfile.gettempdir())):
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{cache_home(environment)}/torchinductor")
    if not (environment.get("LOGNAME") or environment.get("USER") or _entry()):
        environment["USER"] = f"user-{os.getuid()}"  # torch names a folder by it
    return note


def _usual(environment: Mapping[str, str]) -> Path | None:
    named, home = Path(environment.get("XDG_CACHE_HOME", "")), _home(environment)
    if named.is_absolute():
        return named
    return home / ".cache" if home is not None else None


def _home(environment: Mapping[str, str]) -> Path | None:
    if environment.get("HOME"):
        return Path(environment["HOME"])
    entry = _entry()
    return Path(entry.pw_dir) if entry is not None else None


def _entry() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None


def _problem(folder: Path) -> str:
    """Why `folder` can't be used for programs that are compiled; empty if it can."""
    place = nearest_visible(folder.absolute())
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        return f"{folder} can't be made" if place != folder else f"{folder} can't be written"
    if folder.name == _private_name() and folder.exists() and not _is_private_folder(folder):
        return f"others may have made {folder}"  # it was inherited from a process on another machine
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        return f"{folder} is on a file system that is mounted noexec"
    return ""


def _private_folder() -> Path:
    """The user's own in the first temporary folder that can be used; others must not be able to write there."""
    for parent in map(Path, (tempfile.gettempdir(), *_TEMPORARY)):
        folder = parent / _private_name()
        with suppress(OSError):
            if not _problem(parent):
                folder.mkdir(mode=0o700, exist_ok=True)
                if _is_private_folder(folder):
                    return folder
    return _NOWHERE


def _private_name() -> str:
    return f"fmfsd-cache-{os.getuid()}"


def _is_private_folder(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and is_private(status)
