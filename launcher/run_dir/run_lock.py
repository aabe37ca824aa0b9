"""Run lock: only one launch at a time may work on a run. The kernel's file lock decides; a file names the owner."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Self

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from fmfsd.system.file_locks import (
    LockHeldError,
    LockHolder,
    LockUnsupportedError,
    StaleLockError,
    hold_lock,
    lock_file,
)

OWNER_TIMEOUT_S = 2.0
POLL_S = 0.02


class RunInUseError(CheckError):
    """Another launch holds the run."""


class Owner(LockHolder):
    """The process that works on a run."""

    @classmethod
    def of_run(cls, run: RunDir) -> Self | None:
        """Return the current or last owner of the run; None if there was none."""
        return cls.read(run.owner)


@contextmanager
def hold_run_lock(run: RunDir) -> Iterator[None]:
    """Hold the run's lock. BusyError if another launch holds it; the kernel releases the lock of a killed process."""
    with ExitStack() as stack:
        try:
            run.create()
            stack.enter_context(hold_lock(run.lock))
        except (StaleLockError, LockUnsupportedError) as error:
            raise CheckError(str(error)) from error
        except LockHeldError as error:
            file = f" ({error})" if lock_file(run.lock).exists() else ""
            raise RunInUseError(f"{run.path}: {run_in_use_message(run)}{file}") from error
        except OSError as error:
            raise _write_error(error) from error
        try:
            run.stop_request.unlink(missing_ok=True)  # it was for an earlier launch
            write_json(run.owner, asdict(Owner.current()))
        except OSError as error:
            raise _write_error(error) from error
        try:
            yield
        finally:
            with suppress(OSError):
                run.stop_request.unlink(missing_ok=True)


def _write_error(error: OSError) -> CheckError:
    return CheckError(f"the run directory can't be written: {error}")


def run_in_use_message(run: RunDir) -> str:
    """Return the error for a second launch on the run."""
    owner = _wait_for_owner(run)
    details = f" ({owner}; attempt {run.last_attempt()})" if owner else ""
    remedy = "wait for it, stop it with fmfsd-launch stop, or choose another --run-dir"
    return f"in use by another launch{details}: {remedy}"


def _wait_for_owner(run: RunDir) -> Owner | None:
    """Return the process that holds the lock; None if it does not write its name in time.

    Until shortly after it gets the lock, the file is missing or names an earlier launch.
    """
    deadline = time.monotonic() + OWNER_TIMEOUT_S
    while (owner := Owner.of_run(run)) is None or (owner.is_local and not owner.is_alive):
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_S)
    return owner
