"""Where compiled kernels are cached. Programs load code from there, so nobody but this user may write to it."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fmfsd.system.atomic_files import NotPrivateError, require_private
from fmfsd.system.cache_dir import cache_home

COMPILER = "c++"


def have_kernels() -> bool:
    """Return whether kernels can be compiled and used here, as far as that shows without compiling one."""
    return shutil.which(COMPILER) is not None and not privacy_problem()


def kernel_folder() -> Path:
    """Return the folder, made if need be. NotPrivateError if other users may write there."""
    ours = cache_home(os.environ) / "fmfsd"
    ours.mkdir(parents=True, exist_ok=True)
    if (mode := ours.stat().st_mode) & 0o022:  # a umask of 002 leaves it to the group
        with suppress(OSError):
            ours.chmod(mode & ~0o022)
    folder = ours / "kernels"
    folder.mkdir(exist_ok=True, mode=0o700)
    for each in (ours, folder):
        require_private(each, each.stat())
    return folder


def privacy_problem() -> str:
    """Return why kernels in the cache can't be used, and the command that changes that; empty if they can."""
    folder = cache_home(os.environ) / "fmfsd" / "kernels"
    try:
        for path in (folder, *folder.glob("*.so")):
            if path.exists():
                require_private(path, path.lstat())
    except NotPrivateError as error:
        return str(error)
    return ""
