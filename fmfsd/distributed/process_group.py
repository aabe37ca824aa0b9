"""Collectives over a torch process group: joining the group, its backend and its timeout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmfsd.cpu.shared_memory_sums import SharedMemorySums, open_shared_memory_sums
from fmfsd.distributed.collectives import Comms, SingleWorkerComms, WaitCounter
from fmfsd.distributed.world import World


class ProcessGroupComms:
    """Collectives of several workers, over torch.distributed's default group or `group`, which has the same members."""

    def __init__(
        self,
        world: World,
        device: torch.device,
        activity: WaitCounter,
        group: dist.ProcessGroup | None = None,
        shared: SharedMemorySums | None = None,
    ) -> None:
        self.rank, self.size, self.activity = world.rank, world.size, activity
        self._world, self._device, self._group, self._shared = world, device, group, shared

    def __deepcopy__(self, _memo: object) -> "ProcessGroupComms":
        """Return this object: a copied network uses the same process group."""
        return self

    @property
    def uses_shared_memory(self) -> bool:
        return self._shared is not None

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        with self.activity.measure_call():
            if self._shared is not None and self._shared.supports(tensor):
                self._shared.all_reduce_(tensor)
            else:
                dist.all_reduce(tensor, group=self._group)
        return tensor

    def all_reduce_mean_(self, tensor: Tensor) -> Tensor:
        if self._shared is None or not self._shared.supports(tensor):
            return self.all_reduce_(tensor.div_(self.size))
        with self.activity.measure_call():
            self._shared.all_reduce_(tensor, 1 / self.size)
        return tensor

    def broadcast_(self, tensor: Tensor) -> None:
        with self.activity.measure_call():
            dist.broadcast(tensor, src=0, group=self._group)

    def any(self, flag: bool) -> bool:
        flags = self.all_reduce_(torch.tensor([int(flag)], device=self._device))
        with self.activity.measure_call():  # on a GPU this is where the host waits
            return bool(flags.item())

    def broadcast_object(self, value: Any) -> Any:
        content = torch.tensor(
            list(json.dumps(value).encode() if self.rank == 0 else b""), dtype=torch.uint8, device=self._device
        )
        length = torch.tensor([len(content)], device=self._device)
        self.broadcast_(length)
        content = content if self.rank == 0 else content.new_empty(int(length))
        self.broadcast_(content)
        return json.loads(bytes(content.tolist()))

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return all workers' values, by summing tables in which each worker fills in its own row."""
        content = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self._device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        lengths[self.rank] = len(content)
        table = content.new_zeros(self.size, int(self.all_reduce_(lengths).max()))
        table[self.rank, : len(content)] = content
        rows = self.all_reduce_(table).tolist()
        return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths.tolist(), strict=True)]

    @contextmanager
    def with_timeout(self, seconds: float, /) -> Iterator[Comms]:
        """Yield collectives over a new group. After an error the group is not destroyed, as in `join_process_group`."""
        with self.activity.measure_call():
            group = dist.new_group(timeout=timedelta(seconds=seconds))
        assert isinstance(group, dist.ProcessGroup), "all workers are members"
        shared = self._shared.with_timeout(seconds) if self._shared is not None else None
        yield ProcessGroupComms(self._world, self._device, self.activity, group, shared)
        dist.destroy_process_group(group)


def all_reduce_over_default_group(tensor: Tensor) -> tuple[Tensor, int]:
    """Return the sum of `tensor` over the workers of torch's default process group, and their number.

    Not differentiable. Without a process group there is one worker.
    """
    total = tensor.detach().clone()
    if not (dist.is_available() and dist.is_initialized()):
        return total, 1
    dist.all_reduce(total)
    return total, dist.get_world_size()


@contextmanager
def join_process_group(world: World, device: torch.device, *, timeout_s: float) -> Iterator[Comms]:
    """Join the process group: NCCL on GPUs, gloo on CPUs (plus shared memory on one host); no group for one worker.

    A collective fails when it has waited `timeout_s` seconds (torch's default is up to 30 minutes).

    After an error the group is not destroyed: destroying it can wait for peers, and the error must be reported first.
    """
    if world.size == 1:
        yield SingleWorkerComms()
        return
    backend, bound_device = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        backend,
        init_method=world.init_method,
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        device_id=bound_device,
    )
    on_one_host = device.type == "cpu" and world.local_size == world.size
    shared = (
        open_shared_memory_sums(ProcessGroupComms(world, device, WaitCounter()), timeout_s=timeout_s)
        if on_one_host
        else None
    )
    yield ProcessGroupComms(world, device, WaitCounter(), shared=shared)
    if shared is not None:
        shared.close()
    dist.destroy_process_group()
