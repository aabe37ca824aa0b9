"""What this process, and what it starts, may do with files: their modes, how many may be open, how they are locked."""

import os
import resource
from collections.abc import MutableMapping
from contextlib import suppress

from fmfsd.system.file_locks import choose_method

OPEN_FILES = 65_536


def prepare_process(environment: MutableMapping[str, str]) -> None:
    """To be called first by a command: its files are private; enough of them may be open for an agent on many nodes.

    `environment` gets the user's own umask, for prepared sets and reports, which others may read.
    """
    environment.setdefault("FMFSD_UMASK", f"{os.umask(0o077):03o}")
    choose_method(environment)
    raise_open_files()


def raise_open_files(wanted: int = OPEN_FILES) -> None:
    """Raise the soft limit of open files to `wanted`, or as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
