"""What signals and others ask a launch for. A handler only sets a value."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fmfsd.run.run_dir import NOW

LOOK_S = 0.1
SECOND_INTERRUPT_S = 1.0
"""Two interrupts closer than this are one: a terminal and a shell may each send it."""


@dataclass
class Requests:
    """What a launch was asked for."""

    in_job: bool = False
    """Whether a batch job's warning signal is for us; elsewhere SIGUSR1 is none of ours."""
    interrupted: bool = False
    asked_at: float | None = None
    """When a stop was first asked for, on the monotonic clock."""
    others: tuple[Path, ...] = ()
    """Further stop requests that are meant for this launch, beside its run's own."""
    _warned: bool = False
    _terminated: bool = False
    _first_interrupt: float | None = None

    @property
    def stop(self) -> bool:
        return self.asked_at is not None

    @property
    def time_is_up(self) -> bool:
        """Whether the stop was asked for as the job's time is nearly up, and by nobody who meant more by it."""
        return self._warned and not self._terminated and self._first_interrupt is None

    def ask(self) -> None:
        """The run is to stop; to be asked again changes nothing."""
        self.asked_at = self.asked_at or time.monotonic()

    def look_at(self, request: Path) -> None:
        """A run's stop request and the others, as far as they are there."""
        for path in (request, *self.others):
            with suppress(OSError):
                self.interrupted |= path.read_text() == NOW
                self._terminated |= not self.stop  # else it is ours, by which workers hear of it
                self.ask()

    def wait(self, seconds: float, request: Path) -> None:
        """So long, or until a stop is asked for."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stop:
            time.sleep(LOOK_S)
            self.look_at(request)

    def on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_interrupt is not None and now - self._first_interrupt >= SECOND_INTERRUPT_S:
            self.interrupted = True
        self._first_interrupt = self._first_interrupt or now
        self.ask()

    def on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True
        self.ask()

    def on_warning(self, _number: int, _frame: FrameType | None) -> None:
        self._warned = True
        self.ask()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Signals come here instead of ending this process. A hang-up that is ignored, as under nohup, stays so."""
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
