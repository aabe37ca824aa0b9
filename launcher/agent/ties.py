"""Ties a new process to the life of the one that starts it. The standard library only."""

import ctypes
import os
import signal
from collections.abc import Callable
from functools import partial

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_me() -> Callable[[], None]:
    """For `Popen(preexec_fn=...)`: the kernel kills the new process when this one ends, however that happens.

    To be called in the main thread: the tie is to the thread that starts the process.
    """
    return partial(_die_with, os.getpid())


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
