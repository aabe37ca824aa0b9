"""One launch at a time runs a run: the kernel's lock decides, and a file names the holder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fmfsd.errors import CheckError
from fmfsd.files import read_json, write_json
from fmfsd.rundir import RunDir

SAYS_SO_S = 2.0
LOOK_S = 0.02


class BusyError(CheckError):
    """Somebody else has the run."""


@dataclass(frozen=True)
class Owner:
    """The process that runs a run. `born` is its start in the kernel's ticks, as a number is used again for others."""

    host: str
    pid: int
    born: int
    since: float

    @classmethod
    def me(cls) -> "Owner":
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()), time.time())

    @classmethod
    def of(cls, run: RunDir) -> "Owner | None":
        """Who holds the run, or was the last to; None if nobody has said so."""
        try:
            return cls(**read_json(run.owner))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_known_to_live(self) -> bool:
        """Whether it is a process of this host and alive; of other hosts nothing is known."""
        return self.is_here and _born(self.pid) == self.born

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"


@contextmanager
def sole_owner(run: RunDir) -> Iterator[None]:
    """Hold the run. BusyError if another launch does; the kernel takes it from one that was killed."""
    try:
        run.create()
        held = FileLock(run.lock, timeout=0).acquire()
    except Timeout as error:
        raise BusyError(f"{run.path}: {busy(run)}") from error
    except OSError as error:
        raise _unwritable(error) from error
    with held:
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


def _born(pid: int) -> int:
    """-1 for a process that is not there, or has ended and is only waited for by its parent."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if state in "ZX" else int(others[18])
    except (OSError, ValueError, IndexError):
        return -1
