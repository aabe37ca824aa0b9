"""Ties a process to the one above it, so that none is left when that ends."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def tie_to_parent(agent: int | None, *, has_starter: bool = True) -> None:
    """Make the kernel end this process when its parent does, the starter or agent: a killed torchrun leaves orphans.

    The parent may have ended already; then the agent is not where it should be, and this one ends too.
    """
    if agent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if (_parent_of(os.getppid()) if has_starter else os.getppid()) != agent:
        raise SystemExit("what has started this worker is gone, so it ends too")


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None
