"""Checkpoint manager of the training loop: all workers call it, rank 0 writes in a background thread."""

import logging
import threading
import time
from collections.abc import Callable

from fmfsd.checkpoint.checkpoint import Checkpoint
from fmfsd.checkpoint.store import CheckpointStore
from fmfsd.distributed.collectives import Comms
from fmfsd.errors import CheckpointError, NoCheckpointError

log = logging.getLogger(__name__)
MAX_FAILED_SAVES = 1
"""Number of consecutive saves that may fail, such as on a temporarily full disk, before the run fails."""


class CheckpointManager:
    """The checkpoints of a run. Rank 0 writes and selects them; every worker makes every call.

    `warn` gets the problems that did not end the run.
    """

    def __init__(self, folder: CheckpointStore, comms: Comms, *, warn: Callable[[str], None]) -> None:
        self._folder, self._comms, self._warn = folder, comms, warn
        self._writer, self._num_failures = _Writer(), 0
        self._last_failure: CheckpointError | None = None
        self.save_s = 0.0
        """Seconds of the last save, from the copy to the rename."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy the state and write it in the background, once the previous save is written.

        Raises what `poll` raises, for the previous save.
        """
        if self._comms.rank == 0:
            self._handle_outcome(self._writer.result(), failures_allowed=MAX_FAILED_SAVES)
            start, copy = time.monotonic(), checkpoint.copy_to_cpu()
            self._writer.start(lambda: self._write(copy, start))

    def poll(self) -> None:
        """Raise CheckpointError after too many failed saves, or any other error of the last save; does not wait."""
        if not self._writer.busy:
            self._handle_outcome(self._writer.result(), failures_allowed=MAX_FAILED_SAVES)

    def finish(self) -> None:
        """Wait for the writer; on return the last save is on disk, for every worker.

        Raises CheckpointError if it failed.
        """
        self._handle_outcome(self._writer.result(), failures_allowed=0)
        if self._last_failure is not None:  # `poll` has only warned about it
            raise self._last_failure
        self._comms.any(False)

    def best_score(self) -> float | None:
        """Return the highest score of the checkpoints on disk, the same on every worker; waits for the writer."""
        self._writer.wait()
        return self._comms.broadcast_object(self._folder.best_score() if self._comms.rank == 0 else None)

    def close(self) -> None:
        """Wait for the writer and ignore its errors: the run has ended for another reason."""
        self._writer.result()

    def load_newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that passes verification, the same on every worker; None without checkpoints.

        Raises NoCheckpointError if none of the existing checkpoints can be used.
        """
        name = self._comms.broadcast_object(self._folder.find_newest() if self._comms.rank == 0 else None)
        if name == "":
            raise NoCheckpointError(
                f"{self._folder.path}: all checkpoints are damaged; the log of rank 0 has the reasons. To start again "
                "from the first step, choose another --run-dir"
            )
        return None if name is None else self._folder.load(name)

    def _write(self, checkpoint: Checkpoint, start: float) -> None:
        self._folder.write(checkpoint)
        self._num_failures, self._last_failure = 0, None
        self.save_s = time.monotonic() - start
        log.info("saved step %d in %.2f s", checkpoint.position.step, self.save_s)

    def _handle_outcome(self, error: BaseException | None, *, failures_allowed: int) -> None:
        """Warn about the error of the last save, or raise it if more than `failures_allowed` in a row have failed."""
        if error is None:
            return
        if not isinstance(error, CheckpointError):
            raise error
        self._num_failures, self._last_failure = self._num_failures + 1, error
        if self._num_failures > failures_allowed:
            raise error
        log.error("%s", error)
        self._warn(f"{error}; training continues, but ends if the next save fails too")


class _Writer:
    """Runs one task at a time in a thread, and stores its error until `result`."""

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
        """Wait for the task and return its error, which is then forgotten."""
        self.wait()
        error, self._thread, self._error = self._error, None, None
        return error

    def _work(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = error
