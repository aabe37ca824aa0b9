"""The few collectives the project needs, for one worker and for many. Every worker makes every call."""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fmfsd.cpu.shared_memory_sums import SharedSums, shared_sums
from fmfsd.distributed.world import World


@dataclass
class Activity:
    """How a worker waits for the others, for whoever watches from another thread.

    `calls` that may wait were begun; `waiting`: one of them has not come back; `waited_s` is what all of them took.
    """

    calls: int = 0
    waiting: bool = False
    waited_s: float = 0.0

    @contextmanager
    def of_a_call(self) -> Iterator[None]:
        start = time.perf_counter()
        self.calls, self.waiting = self.calls + 1, True
        try:
            yield
        finally:
            self.waiting, self.waited_s = False, self.waited_s + time.perf_counter() - start


class Comms(Protocol):
    """How workers talk to one another."""

    rank: int
    size: int
    activity: Activity

    @property
    def shares_memory(self) -> bool:
        """Whether sums of CPU tensors go through memory that all workers have, and not over a network."""
        ...

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor` becomes the sum of all workers'; also returned. No gradient passes."""
        ...

    def mean_(self, tensor: Tensor) -> Tensor:
        """`tensor` becomes the mean of all workers'; also returned. No gradient passes."""
        ...

    def spread_(self, tensor: Tensor) -> None:
        """`tensor` becomes rank 0's."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker."""
        ...

    def share(self, value: Any) -> Any:
        """Rank 0's value, of JSON types, on every worker."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Each worker's value, of JSON types, by rank, on every worker."""
        ...

    def within(self, seconds: float, /) -> AbstractContextManager["Comms"]:
        """The same workers for a while, by calls that fail with a RuntimeError when they have waited `seconds`."""
        ...


class SoloComms:
    """A world of one: nothing to agree on."""

    rank, size, shares_memory = 0, 1, False

    def __init__(self) -> None:
        self.activity = Activity()

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def mean_(self, tensor: Tensor) -> Tensor:
        return tensor

    def spread_(self, tensor: Tensor) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag

    def share(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def within(self, _seconds: float, /) -> AbstractContextManager[Comms]:
        return nullcontext(self)


class GroupComms:
    """Several workers, by torch.distributed's default group or by `group`, which has the same."""

    def __init__(
        self,
        world: World,
        device: torch.device,
        activity: Activity,
        group: dist.ProcessGroup | None = None,
        shared: SharedSums | None = None,
    ) -> None:
        self.rank, self.size, self.activity = world.rank, world.size, activity
        self._world, self._device, self._group, self._shared = world, device, group, shared

    def __deepcopy__(self, _memo: object) -> "GroupComms":
        """A copy of a network that talks to others talks in the same way."""
        return self

    @property
    def shares_memory(self) -> bool:
        return self._shared is not None

    def sum_(self, tensor: Tensor) -> Tensor:
        with self.activity.of_a_call():
            if self._shared is not None and self._shared.takes(tensor):
                self._shared.sum_(tensor)
            else:
                dist.all_reduce(tensor, group=self._group)
        return tensor

    def mean_(self, tensor: Tensor) -> Tensor:
        if self._shared is None or not self._shared.takes(tensor):
            return self.sum_(tensor.div_(self.size))
        with self.activity.of_a_call():
            self._shared.sum_(tensor, 1 / self.size)
        return tensor

    def spread_(self, tensor: Tensor) -> None:
        with self.activity.of_a_call():
            dist.broadcast(tensor, src=0, group=self._group)

    def any(self, flag: bool) -> bool:
        flags = self.sum_(torch.tensor([int(flag)], device=self._device))
        with self.activity.of_a_call():  # on a GPU this is where the host waits
            return bool(flags.item())

    def share(self, value: Any) -> Any:
        content = torch.tensor(
            list(json.dumps(value).encode() if self.rank == 0 else b""), dtype=torch.uint8, device=self._device
        )
        length = torch.tensor([len(content)], device=self._device)
        self.spread_(length)
        content = content if self.rank == 0 else content.new_empty(int(length))
        self.spread_(content)
        return json.loads(bytes(content.tolist()))

    def gather(self, value: Any) -> list[Any]:
        """By sums of tables in which each worker fills in its own row."""
        content = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self._device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        lengths[self.rank] = len(content)
        table = content.new_zeros(self.size, int(self.sum_(lengths).max()))
        table[self.rank, : len(content)] = content
        rows = self.sum_(table).tolist()
        return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths.tolist(), strict=True)]

    @contextmanager
    def within(self, seconds: float, /) -> Iterator[Comms]:
        """After an error the group is left as it is, as `connect` leaves its own."""
        with self.activity.of_a_call():
            group = dist.new_group(timeout=timedelta(seconds=seconds))
        assert isinstance(group, dist.ProcessGroup), "all workers are in it"
        shared = self._shared.within(seconds) if self._shared is not None else None
        yield GroupComms(self._world, self._device, self.activity, group, shared)
        dist.destroy_process_group(group)


def sum_over_default_group(tensor: Tensor) -> tuple[Tensor, int]:
    """Return the sum of `tensor` over the workers of torch's default process group, and their number.

    No gradient passes. Without a process group there is one worker.
    """
    total = tensor.detach().clone()
    if not (dist.is_available() and dist.is_initialized()):
        return total, 1
    dist.all_reduce(total)
    return total, dist.get_world_size()


@contextmanager
def connect(world: World, device: torch.device, *, timeout_s: float) -> Iterator[Comms]:
    """Meet the other workers: NCCL on GPUs, gloo and on one host shared memory on CPUs; nothing in a world of one.

    A collective fails when it has waited `timeout_s` seconds (torch's own default is up to 30 minutes).

    After an error the group is left as it is: taking it down can wait for peers, and the error's word comes first.
    """
    if world.size == 1:
        yield SoloComms()
        return
    backend, owned = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        backend, init_method=world.init_method, rank=world.rank, world_size=world.size, timeout=timeout, device_id=owned
    )
    together = device.type == "cpu" and world.local_size == world.size
    shared = shared_sums(GroupComms(world, device, Activity()), timeout_s=timeout_s) if together else None
    yield GroupComms(world, device, Activity(), shared=shared)
    if shared is not None:
        shared.close()
    dist.destroy_process_group()
