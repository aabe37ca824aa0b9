"""The condition that a machine is in: limits, disks, loopback, names, driver. The standard library only."""

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

from launcher.agent.resources import driver

NAME_S = 12.0
"""A resolver that does not answer costs 10 s a look-up."""
_LOOK_S = 0.01
_LOOPBACK = ("127.0.0.1", "127.0.1.100")
"""Where workers meet on one machine; a node agent's torchrun takes an address like the second."""
_SHM = Path("/dev/shm")  # noqa: S108 (we write nothing there)
_INFINIBAND = Path("/dev/infiniband")


def told(cwd: str) -> dict[str, Any]:
    """Bytes, -1: without a limit. `name_s`: seconds for a look-up of the machine's own name; None: NAME_S or more."""
    temporary = tempfile.gettempdir()
    return {
        "host": socket.gethostname(),
        "driver": asdict(driver()),
        "installed_cores": os.cpu_count(),
        "shm": _free(str(_SHM)),
        "disks": {"this folder": [cwd, _free(cwd)], "temporary files": [temporary, _free(temporary)]},
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked_memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "infiniband": _INFINIBAND.exists(),
        "loopback": loopback_trouble(),
        "name_s": _seconds_of_own_name(),
    }


def loopback_trouble() -> str:
    """Why processes of this machine can't talk to one another over loopback; empty if they can."""
    for address in _LOOPBACK:
        try:
            with socket.create_server((address, 0)) as listener, socket.create_connection(listener.getsockname(), 1.0):
                pass
        except OSError as error:
            return f"{address}: {error}"
    return ""


def _free(place: str) -> int | None:
    """None where there is no such place."""
    with suppress(OSError):
        return shutil.disk_usage(place).free
    return None


def _seconds_of_own_name() -> float | None:
    """In a process of its own, as nothing else ends a look-up that waits for an answer."""
    began, child = time.monotonic(), os.fork()
    if child == 0:
        with suppress(BaseException):
            socket.getfqdn()
        os._exit(0)
    while time.monotonic() - began < NAME_S:
        if os.waitpid(child, os.WNOHANG)[0]:
            return time.monotonic() - began
        time.sleep(_LOOK_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
