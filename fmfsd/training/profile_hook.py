"""Interface of a profiler of the training loop; `NoProfile` does nothing."""

from types import TracebackType
from typing import Protocol, Self

from fmfsd.distributed.collectives import Comms
from fmfsd.training.loop import Loop


class Profile(Protocol):
    """Measures a loop and its collectives while the context is open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def wrap_comms(self, comms: Comms) -> Comms:
        """Return the collectives to build the loop with."""
        ...

    def wrap_loop(self, loop: Loop) -> Loop:
        """Return the loop to run."""
        ...


class NoProfile:
    """Measures nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def wrap_comms(self, comms: Comms) -> Comms:
        return comms

    def wrap_loop(self, loop: Loop) -> Loop:
        return loop
