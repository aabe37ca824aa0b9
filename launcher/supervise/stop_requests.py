"""Stop requests to a launch, from signals and files. A signal handler only sets a flag."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fmfsd.run.run_dir import STOP_NOW

POLL_S = 0.1
SECOND_INTERRUPT_S = 1.0
"""Two interrupts closer than this are one: a terminal and a shell may each send it."""


@dataclass
class StopRequests:
    """The stop requests that a launch has received."""

    in_job: bool = False
    """Handle SIGUSR1, a batch job's warning signal; outside of jobs it is left alone."""
    interrupted: bool = False
    requested_at: float | None = None
    """When a stop was first requested, on the monotonic clock."""
    other_files: tuple[Path, ...] = ()
    """Further stop request files for this launch, in addition to the run's own."""
    _warned: bool = False
    _terminated: bool = False
    _first_interrupt: float | None = None

    @property
    def is_stop_requested(self) -> bool:
        """Return whether a stop was requested."""
        return self.requested_at is not None

    @property
    def time_is_up(self) -> bool:
        """Return whether the job's warning signal is the only reason to stop: no user or other process requested it."""
        return self._warned and not self._terminated and self._first_interrupt is None

    def request_stop(self) -> None:
        """Request a stop; a second request changes nothing."""
        self.requested_at = self.requested_at or time.monotonic()

    def check_files(self, request: Path) -> None:
        """Check the run's stop request file and `other_files`."""
        for path in (request, *self.other_files):
            with suppress(OSError):
                self.interrupted |= path.read_text() == STOP_NOW
                self._terminated |= not self.is_stop_requested  # else the file is ours, written to stop the workers
                self.request_stop()

    def wait(self, seconds: float, request: Path) -> None:
        """Wait for `seconds`, or until a stop is requested."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_stop_requested:
            time.sleep(POLL_S)
            self.check_files(request)

    def on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_interrupt is not None and now - self._first_interrupt >= SECOND_INTERRUPT_S:
            self.interrupted = True
        self._first_interrupt = self._first_interrupt or now
        self.request_stop()

    def on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True
        self.request_stop()

    def on_warning(self, _number: int, _frame: FrameType | None) -> None:
        self._warned = True
        self.request_stop()

    @contextmanager
    def install_handlers(self) -> Iterator[None]:
        """Install the signal handlers for the block. SIGHUP stays ignored if it was, as under nohup."""
        handlers = {
            signal.SIGINT: self.on_interrupt,
            signal.SIGTERM: self.on_terminate,
        }
        if self.in_job:
            handlers[signal.SIGUSR1] = self.on_warning
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handlers[signal.SIGHUP] = self.on_terminate
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
