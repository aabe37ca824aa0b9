"""Runs short commands on this machine in the foreground of a launch."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from launcher.agent.parent_death import with_parent_death

END_TIMEOUT_S = 10.0
POLL_S = 0.1


def run_foreground(argv: Sequence[str], *, stop: Callable[[], bool]) -> int:
    """Run a command in the foreground with its output on our stderr, and return its exit code.

    The command is terminated once `stop` returns true.
    """
    process = subprocess.Popen(with_parent_death(argv), stdin=subprocess.DEVNULL, stdout=sys.stderr)
    while process.poll() is None and not stop():
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
    process.terminate()
    try:
        return process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def run_captured(
    argv: Sequence[str], *, timeout_s: float, extra_env: Mapping[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Run a command and return its exit code, stdout and stderr.

    The exit code is None, and stderr the reason, if the command could not be started or did not end in time. The
    command gets our environment and the variables `extra_env`.
    """
    try:
        completed = subprocess.run(
            with_parent_death(argv),
            env={**os.environ, **(extra_env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return None, "", f"no answer in {timeout_s:g} s"
    except OSError as error:
        return None, "", str(error)
    return completed.returncode, completed.stdout, completed.stderr
