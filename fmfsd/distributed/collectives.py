"""Collectives for one worker or many, over torch.distributed. Every worker must make every call."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass
class WaitCounter:
    """Counts the time that a worker waits for the other workers; a monitoring thread may read it.

    `calls` counts the blocking calls that were started, `waiting` is true while one has not returned, and `waited_s`
    is the time that all of them took.
    """

    calls: int = 0
    waiting: bool = False
    waited_s: float = 0.0

    @contextmanager
    def measure_call(self) -> Iterator[None]:
        start = time.perf_counter()
        self.calls, self.waiting = self.calls + 1, True
        try:
            yield
        finally:
            self.waiting, self.waited_s = False, self.waited_s + time.perf_counter() - start


class Comms(Protocol):
    """Collective communication between the workers."""

    rank: int
    size: int
    activity: WaitCounter

    @property
    def uses_shared_memory(self) -> bool:
        """Return whether sums of CPU tensors go through shared memory instead of a network."""
        ...

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by the sum over all workers and return it. Not differentiable."""
        ...

    def all_reduce_mean_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by the mean over all workers and return it. Not differentiable."""
        ...

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace `tensor` by rank 0's tensor."""
        ...

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any worker."""
        ...

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value on every worker. It must be of JSON types."""
        ...

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the values of all workers, by rank, on every worker. They must be of JSON types."""
        ...

    def with_timeout(self, seconds: float, /) -> AbstractContextManager["Comms"]:
        """Return collectives of the same workers whose calls raise RuntimeError after waiting `seconds`."""
        ...


class SingleWorkerComms:
    """Collectives of a single worker: every call returns its own value."""

    rank, size, uses_shared_memory = 0, 1, False

    def __init__(self) -> None:
        self.activity = WaitCounter()

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_reduce_mean_(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast_(self, tensor: Tensor) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast_object(self, value: Any) -> Any:
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]

    def with_timeout(self, _seconds: float, /) -> AbstractContextManager[Comms]:
        return nullcontext(self)
