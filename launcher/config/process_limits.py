"""File modes, the limit of open files, and the file lock method of this process and its children."""

import os
import resource
from collections.abc import MutableMapping
from contextlib import suppress

from fmfsd.system.file_locks import choose_lock_method

MAX_OPEN_FILES = 65_536


def prepare_process(environment: MutableMapping[str, str]) -> None:
    """Make files private and allow enough open files for an agent on each of many nodes; call this first in a command.

    `environment` gets the user's umask, which is applied to prepared data sets and reports so that others may read
    them.
    """
    environment.setdefault("FMFSD_UMASK", f"{os.umask(0o077):03o}")
    choose_lock_method(environment)
    raise_open_files()


def raise_open_files(wanted: int = MAX_OPEN_FILES) -> None:
    """Raise the soft limit of open files to `wanted`, or as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    new_soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < new_soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_soft, hard))
