"""One launch at a time runs a run: the kernel's lock decides, and a file names the holder."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Self

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from fmfsd.system.file_locks import Holder, LockHeldError, LockLeftError, LockUnsupportedError, hold_lock, lock_file

SAYS_SO_S = 2.0
LOOK_S = 0.02


class BusyError(CheckError):
    """Somebody else has the run."""


class Owner(Holder):
    """The process that runs a run."""

    @classmethod
    def of(cls, run: RunDir) -> Self | None:
        """Who holds the run, or was the last to; None if nobody has said so."""
        return cls.read(run.owner)


@contextmanager
def sole_owner(run: RunDir) -> Iterator[None]:
    """Hold the run. BusyError if another launch does; the kernel takes it from one that was killed."""
    with ExitStack() as stack:
        try:
            run.create()
            stack.enter_context(hold_lock(run.lock))
        except (LockLeftError, LockUnsupportedError) as error:
            raise CheckError(str(error)) from error
        except LockHeldError as error:
            file = f" ({error})" if lock_file(run.lock).exists() else ""
            raise BusyError(f"{run.path}: {busy(run)}{file}") from error
        except OSError as error:
            raise _unwritable(error) from error
        try:
            run.stop_request.unlink(missing_ok=True)  # made to an earlier launch; from the next line on, to us
            write_json(run.owner, asdict(Owner.me()))
        except OSError as error:
            raise _unwritable(error) from error
        try:
            yield
        finally:
            with suppress(OSError):
                run.stop_request.unlink(missing_ok=True)


def _unwritable(error: OSError) -> CheckError:
    return CheckError(f"the run directory can't be written: {error}")


def busy(run: RunDir) -> str:
    """What to tell a second launch."""
    owner = _holder(run)
    who = f" ({owner}; attempt {run.last_attempt()})" if owner else ""
    ways = "wait for it, stop it with fmfsd-launch stop, or choose another --run-dir"
    return f"another launch is at work there{who}: {ways}"


def _holder(run: RunDir) -> Owner | None:
    """Who has the lock, which says so a moment after it got it: until then the word is missing, or a dead launch's."""
    end = time.monotonic() + SAYS_SO_S
    while (owner := Owner.of(run)) is None or (owner.is_here and not owner.is_known_to_live):
        if time.monotonic() >= end:
            return None
        time.sleep(LOOK_S)
    return owner
