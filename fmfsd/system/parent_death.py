"""Parent death signal: a process ends when its parent ends, so that no orphans remain."""

import ctypes
import os
import signal

import psutil

_PR_SET_PDEATHSIG = 1


def die_with_parent(agent: int | None, *, has_starter: bool = True) -> None:
    """Make the kernel kill this process when its parent (starter or agent) ends: a killed torchrun leaves orphans.

    Raises SystemExit if the parent has already ended, so that `agent` is not the parent (grandparent with a starter).
    """
    if agent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if (_parent_of(os.getppid()) if has_starter else os.getppid()) != agent:
        raise SystemExit("the process that started this worker has ended, so the worker ends too")


def _parent_of(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None
