"""Health of a machine: limits, disks, loopback, name lookup, GPU driver. Standard library only."""

import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.agent.visible_gpus import query_driver

NAME_LOOKUP_TIMEOUT_S = 12.0
"""Timeout of the lookup. One try of a resolver that does not answer takes 10 s."""
_POLL_S = 0.01
_LOOPBACK = ("127.0.0.1", "127.0.1.100")
"""Addresses at which workers of one machine connect; the torchrun of a node agent uses one like the second."""
_SHM = Path("/dev/shm")  # noqa: S108 (nothing is written there)
_INFINIBAND = Path("/dev/infiniband")


def collect_health(cwd: str) -> dict[str, Any]:
    """Return limits, free disk space in bytes, loopback and driver problems.

    -1 in a limit means no limit. `name_s`: seconds that the lookup of the machine's own name took; None: it timed out.
    """
    temporary = tempfile.gettempdir()
    return {
        "host": socket.gethostname(),
        "driver": asdict(query_driver()),
        "installed_cores": os.cpu_count(),
        "shm": _free_bytes(str(_SHM)),
        "disks": {"this folder": [cwd, _free_bytes(cwd)], "temporary files": [temporary, _free_bytes(temporary)]},
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked_memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "infiniband": _INFINIBAND.exists(),
        "loopback": loopback_problem(),
        "name_s": _time_name_lookup(),
    }


def loopback_problem() -> str:
    """Return why processes of this machine can't connect to each other over loopback; empty if they can."""
    for address in _LOOPBACK:
        try:
            with socket.create_server((address, 0)) as listener, socket.create_connection(listener.getsockname(), 1.0):
                pass
        except OSError as error:
            return f"{address}: {error}"
    return ""


def _free_bytes(path: str) -> int | None:
    """Return the free bytes at `path`; None if it does not exist."""
    with suppress(OSError):
        return shutil.disk_usage(path).free
    return None


def _time_name_lookup() -> float | None:
    """Return the seconds that a lookup of the machine's own name takes; None: it timed out.

    The lookup runs in a child process, because a lookup that waits for an answer can only be ended by killing its
    process.
    """
    started, child = time.monotonic(), os.fork()
    if child == 0:
        with suppress(BaseException):
            socket.getfqdn()
        os._exit(0)
    while time.monotonic() - started < NAME_LOOKUP_TIMEOUT_S:
        if os.waitpid(child, os.WNOHANG)[0]:
            return time.monotonic() - started
        time.sleep(_POLL_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
