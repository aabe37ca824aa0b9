"""Attempt fencing: a worker that outlives its attempt must not write to the run of a newer attempt."""

from dataclasses import dataclass

from fmfsd.errors import FencedError
from fmfsd.run.run_dir import RunDir


@dataclass(frozen=True)
class AttemptFence:
    """Fence for a worker of attempt number `attempt`. The coordinator records a new attempt before it starts it.

    A rename is safe if the worker calls `require_current` between creating the temporary file and renaming it: a new
    attempt removes all temporary files after it has been recorded.
    """

    run: RunDir
    attempt: int

    def require_current(self) -> None:
        """Raise FencedError if a newer attempt of the run has started."""
        newest = self.run.last_attempt()
        if newest > self.attempt:
            raise FencedError(
                f"attempt {newest} of this run has started: a worker of attempt {self.attempt} may not write"
            )
