"""Quick tests: those of two folders that start no process. A quick test that starts one fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fmfsd.system.kernel_cache import COMPILER

TESTS = Path(__file__).parents[1]
FOLDERS = ("fmfsd", "launcher")
PROCESSES = "processes"
"""The fixture that a test in these folders requests if it starts processes; it is not quick then."""

_EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system")
_ALLOWED = {COMPILER, "git"}
"""The compiler of the CPU kernels runs once a session; `git status` is run for the manifest."""
_refused: list[str] | None = None
"""The starts that were refused in the running quick test; None while no quick test runs."""


def is_quick(item: pytest.Item) -> bool:
    return item.path.relative_to(TESTS).parts[0] in FOLDERS and PROCESSES not in getattr(item, "fixturenames", ())


@contextmanager
def refuse_processes() -> Iterator[list[str]]:
    """Refuse every start of a process, except of the allowed programs.

    The yielded list contains every refused start, even if the code under test caught the error.
    """
    global _refused
    _refused = []
    try:
        with patch.object(BaseProcess, "start", _refuse_worker):
            yield _refused
    finally:
        _refused = None


def _refuse_worker(process: BaseProcess) -> None:
    _refuse(f"multiprocessing: {process.name}")


def _refuse(what: str) -> None:
    if _refused is not None:
        _refused.append(what)
        raise RuntimeError(f"a quick test must not start a process ({what}): request the fixture `{PROCESSES}`")


def _program_arguments(arguments: tuple[Any, ...]) -> list[str]:
    """Return the command line in the arguments of an audit event that starts a process."""
    argv = arguments[1] if len(arguments) > 1 else ()
    return [str(argument) for argument in argv] if isinstance(argv, list | tuple) else []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _refused is not None and event in _EVENTS and not _ALLOWED & set(_program_arguments(arguments)):
        _refuse(f"{event}: {arguments[:2]}")


sys.addaudithook(_audit)
