"""Ties a new process to the life of the one that starts it. The standard library only.

As a program, `ties.py PARENT COMMAND...` ties itself to its parent and becomes the command.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_me() -> Callable[[], None]:
    """For `Popen(preexec_fn=...)`: the kernel kills the new process when this one ends, however that happens.

    Only for processes with one thread, as agents are: of several threads, another may hold a lock while this one forks,
    and the new process would wait for it for ever. They use `tied`.
    """
    return partial(_die_with, os.getpid())


def tied(argv: Sequence[str]) -> tuple[str, ...]:
    """The command `argv`, whose process the kernel kills when the thread that starts it ends, however that happens."""
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv)


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


if __name__ == "__main__":
    _die_with(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 (a list, and no shell)
    except OSError as error:
        print(f"{sys.argv[2]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None
