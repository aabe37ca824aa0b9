"""Limits that the kernel sets to this process and to what it starts."""

import resource
from contextlib import suppress

OPEN_FILES = 65_536


def raise_open_files(wanted: int = OPEN_FILES) -> None:
    """Raise the soft limit of open files to `wanted`, or as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
