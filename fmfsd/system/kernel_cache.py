"""Cache folder of compiled kernels. Programs load code from it, so only this user may write to it."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fmfsd.system.atomic_files import NotPrivateError, require_private
from fmfsd.system.cache_dir import cache_home

COMPILER = "c++"


def can_compile_kernels() -> bool:
    """Return whether kernels can be compiled and used here, as far as a check without compiling shows."""
    return shutil.which(COMPILER) is not None and not find_privacy_problem()


def kernel_folder() -> Path:
    """Return the cache folder, and create it if necessary. NotPrivateError if other users may write to it."""
    parent = cache_home(os.environ) / "fmfsd"
    parent.mkdir(parents=True, exist_ok=True)
    if (mode := parent.stat().st_mode) & 0o022:  # with umask 002 the group may write
        with suppress(OSError):
            parent.chmod(mode & ~0o022)
    folder = parent / "kernels"
    folder.mkdir(exist_ok=True, mode=0o700)
    for path in (parent, folder):
        require_private(path, path.stat())
    return folder


def find_privacy_problem() -> str:
    """Return why kernels in the cache can't be used, and the command that fixes it; empty if they can."""
    folder = cache_home(os.environ) / "fmfsd" / "kernels"
    try:
        for path in (folder, *folder.glob("*.so")):
            if path.exists():
                require_private(path, path.lstat())
    except NotPrivateError as error:
        return str(error)
    return ""
