"""Parent death: makes the kernel kill a new process when the process that started it ends. Standard library only.

As a program, `parent_death.py PARENT COMMAND...` asks the kernel for this and then becomes the command.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def parent_death_preexec() -> Callable[[], None]:
    """Return a function for `Popen(preexec_fn=...)` by which the kernel kills the new process when this one ends.

    Only for single-threaded processes such as agents: with several threads, another thread may hold a lock during the
    fork, and the new process would wait for that lock for ever. Multi-threaded processes use `with_parent_death`.
    """
    return partial(_set_parent_death_signal, os.getpid())


def with_parent_death(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command `argv`, wrapped so that the kernel kills it when the thread that starts it ends."""
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv)


def _set_parent_death_signal(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


if __name__ == "__main__":
    _set_parent_death_signal(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 (a list, and no shell)
    except OSError as error:
        print(f"{sys.argv[2]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None
