"""What the training loop does with checkpoints: all workers call, rank 0 writes, beside the training."""

import logging
import threading
import time
from collections.abc import Callable

from fmfsd.checkpoint.checkpoint import Saved
from fmfsd.checkpoint.store import CheckpointFolder
from fmfsd.distributed.collectives import Comms
from fmfsd.errors import CheckpointError, NoCheckpointError

log = logging.getLogger(__name__)
MAY_FAIL = 1
"""So many saves in a row may fail, as on a disk that is full for a while, before the run gives up."""


class Checkpoints:
    """The checkpoints of a run. Rank 0 writes and chooses; every worker makes every call.

    `warn` is told of what went wrong and did not end the run.
    """

    def __init__(self, folder: CheckpointFolder, comms: Comms, *, warn: Callable[[str], None]) -> None:
        self._folder, self._comms, self._warn = folder, comms, warn
        self._writer, self._failed = _Writer(), 0
        self._lost: CheckpointError | None = None
        self.save_s = 0.0
        """How long the last save took, from the copy to the rename."""

    def save(self, saved: Saved) -> None:
        """Copy the state and write it beside the training, after what may still be being written.

        Raises what `look` raises, of the save before this one.
        """
        if self._comms.rank == 0:
            self._collect(self._writer.result(), may_fail=MAY_FAIL)
            start, copy = time.monotonic(), saved.staged()
            self._writer.start(lambda: self._write(copy, start))

    def look(self) -> None:
        """Raises CheckpointError once saves keep failing, and what else ended the last one; cheap."""
        if not self._writer.busy:
            self._collect(self._writer.result(), may_fail=MAY_FAIL)

    def finish(self) -> None:
        """Wait for what is being written; on return the last save is there, for every worker.

        Raises CheckpointError if it is not.
        """
        self._collect(self._writer.result(), may_fail=0)
        if self._lost is not None:  # `look` has only warned of it
            raise self._lost
        self._comms.any(False)

    def best_score(self) -> float | None:
        """Of the checkpoints that are kept, the same on every worker; waits for what is being written."""
        self._writer.wait()
        return self._comms.share(self._folder.best_score() if self._comms.rank == 0 else None)

    def close(self) -> None:
        """Wait for the writer, whatever it says: the run has ended for another reason."""
        self._writer.result()

    def load_newest(self) -> Saved | None:
        """The newest checkpoint that verifies, the same one on every worker; None if there is none at all.

        Raises NoCheckpointError if there are some but none can be used.
        """
        name = self._comms.share(self._folder.newest() if self._comms.rank == 0 else None)
        if name == "":
            raise NoCheckpointError(
                f"{self._folder.path}: no checkpoint there can be used; the log of rank 0 names each one's damage. To "
                "begin again, choose another --run-dir"
            )
        return None if name is None else self._folder.read(name)

    def _write(self, saved: Saved, start: float) -> None:
        self._folder.write(saved)
        self._failed, self._lost = 0, None
        self.save_s = time.monotonic() - start
        log.info("saved step %d in %.2f s", saved.position.step, self.save_s)

    def _collect(self, outcome: BaseException | None, *, may_fail: int) -> None:
        """Judge what came of the last save."""
        if outcome is None:
            return
        if not isinstance(outcome, CheckpointError):
            raise outcome
        self._failed, self._lost = self._failed + 1, outcome
        if self._failed > may_fail:
            raise outcome
        log.error("%s", outcome)
        self._warn(f"{outcome}; training goes on, but ends if the next save fails too")


class _Writer:
    """Does one thing at a time in a thread, and keeps its error until it is asked for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._work, args=(task,), name="checkpoint writer")
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def result(self) -> BaseException | None:
        """The task's error, once; waits for it."""
        self.wait()
        error, self._thread, self._error = self._error, None, None
        return error

    def _work(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = error
