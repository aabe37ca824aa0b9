"""Keeps a worker that has outlived its attempt from writing into a run that has gone on without it."""

from dataclasses import dataclass

from fmfsd.errors import FencedError
from fmfsd.run.run_dir import RunDir


@dataclass(frozen=True)
class Fence:
    """`attempt` is the start of the run that this worker belongs to; the coordinator leaves word of a newer one first.

    What a worker is about to make whole by a rename is safe if it asks between making the scratch name and the rename:
    a newer attempt removes every scratch name once it has left word.
    """

    run: RunDir
    attempt: int

    def require_ours(self) -> None:
        """Raises FencedError if a newer attempt has the run."""
        newest = self.run.last_attempt()
        if newest > self.attempt:
            raise FencedError(f"attempt {newest} has this run now: a worker of attempt {self.attempt} writes no more")
