"""What a profile does around the training loop; `NoProfile` does nothing."""

from types import TracebackType
from typing import Protocol, Self

from fmfsd.distributed.collectives import Comms
from fmfsd.training.loop import Loop


class Profile(Protocol):
    """Looks at a loop and at its calls to other workers, while it is open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def heard(self, comms: Comms) -> Comms:
        """What the loop is to be built with."""
        ...

    def of(self, loop: Loop) -> Loop: ...


class NoProfile:
    """Looks at nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def heard(self, comms: Comms) -> Comms:
        return comms

    def of(self, loop: Loop) -> Loop:
        return loop
