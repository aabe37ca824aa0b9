"""All-reduce of CPU tensors over the workers of one host, through shared memory, in C++ (`sums.cpp`).

For a few numbers gloo takes 0.4 ms or more, this 4 to 7 µs (two workers with a core each).
"""

import ctypes
import mmap
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from fmfsd.cpu import cpp_extension

_ENDED, _LATE = 1, 2
"""Outcomes of a sum, as in sums.cpp: a process ended, a timeout."""
_FUNCTIONS = {torch.float32: "sum_float", torch.float64: "sum_double"}


class ObjectCollectives(Protocol):
    """The part of `fmfsd.distributed.collectives.Comms` with which the workers agree on the shared memory."""

    rank: int
    size: int

    def broadcast_object(self, value: Any) -> Any: ...

    def all_gather_object(self, value: Any) -> list[Any]: ...


class SharedMemorySums:
    """All-reduce through shared memory. Tensors are added in rank order, so all workers get bit-identical sums.

    Every worker must make every call. `processes` are file descriptors (pidfds) that become readable when a worker's
    process ends, by rank; the worker's own is -1.
    """

    def __init__(
        self, library: ctypes.CDLL, memory: mmap.mmap, rank: int, processes: Sequence[int], timeout_s: float
    ) -> None:
        self._library, self._memory, self._rank, self._processes = library, memory, rank, processes
        self._timeout_s = timeout_s
        self._functions = {dtype: _load_function(library, name) for dtype, name in _FUNCTIONS.items()}
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._pidfds = (ctypes.c_int * len(processes))(*processes)

    def supports(self, tensor: Tensor) -> bool:
        """Return whether `all_reduce_` can add up this tensor; if not, use the process group."""
        is_dense = tensor.is_contiguous() and not tensor.is_neg()
        return is_dense and tensor.device.type == "cpu" and tensor.dtype in self._functions

    def all_reduce_(self, tensor: Tensor, factor: float = 1.0) -> None:
        """Replace `tensor` by the sum over all workers, each multiplied by `factor`.

        Raises RuntimeError if a worker's process has ended, does not take part in time, or adds another size.
        """
        outcome = self._functions[tensor.dtype](
            self._start,
            len(self._pidfds),
            self._rank,
            self._pidfds,
            self._timeout_s,
            factor,
            tensor.data_ptr(),
            tensor.numel(),
        )
        if outcome:
            raise RuntimeError(self._describe_failure(*divmod(outcome, len(self._pidfds))))

    def _describe_failure(self, outcome: int, rank: int) -> str:
        if outcome == _ENDED:
            return _describe_end(rank)
        if outcome == _LATE:
            return f"timed out waiting for rank {rank}, after {self._timeout_s:g} s"
        return f"tensor sizes differ: rank {rank} and rank {self._rank} add up different tensors"

    def with_timeout(self, timeout_s: float) -> "SharedMemorySums":
        """Return an object for the same memory whose calls wait `timeout_s` seconds at most."""
        return SharedMemorySums(self._library, self._memory, self._rank, self._processes, timeout_s)

    def close(self) -> None:
        for pidfd in self._processes:
            if pidfd >= 0:
                os.close(pidfd)


def open_shared_memory_sums(comms: ObjectCollectives, *, timeout_s: float) -> SharedMemorySums | None:
    """Return the shared-memory sums of the workers of one host, all of which must make the call.

    Return None on every worker if one of them has no compiler or can't map the memory.
    """
    library = cpp_extension.load_library("sums") if _is_supported() else None
    size = library.segment_bytes(ctypes.c_long(comms.size)) if library is not None else 0
    created = _create_memory_file(size) if comms.rank == 0 and size else None
    location = comms.broadcast_object((os.getpid(), *created) if created is not None else None)
    memory = _map_memory_file(size, *location) if location is not None and size else None
    pids = comms.all_gather_object(os.getpid() if memory is not None else None)
    if created is not None:
        os.close(created[0])
    if library is None or memory is None or None in pids:
        return None
    return SharedMemorySums(
        library, memory, comms.rank, [_open_pidfd(rank, pid) for rank, pid in enumerate(pids)], timeout_s
    )


def _open_pidfd(rank: int, pid: int) -> int:
    """Return a pidfd of the worker, -1 for this process. Raises RuntimeError if the process has ended."""
    try:
        return -1 if pid == os.getpid() else os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise RuntimeError(_describe_end(rank)) from error


def _describe_end(rank: int) -> str:
    return f"another worker's process has ended: rank {rank}"  # the launcher's failure report matches the start


def _is_supported() -> bool:
    """Return whether the system has pidfds and memfds: Linux, outside sandboxes that lack them."""
    with suppress(AttributeError, OSError):
        os.close(os.pidfd_open(os.getpid()))
        return hasattr(os, "memfd_create")
    return False


def _create_memory_file(size: int) -> tuple[int, str] | None:
    """Return an anonymous file in memory (memfd), which vanishes with its last user, and its name; None on failure."""
    name = f"fmfsd-{secrets.token_hex(8)}"
    with suppress(OSError):
        file = os.memfd_create(name)
        try:
            os.truncate(file, size)
        except OSError:
            os.close(file)
            raise
        return file, name
    return None


def _map_memory_file(size: int, pid: int, file: int, name: str) -> mmap.mmap | None:
    """Map the memfd of that name of another process; return None where that fails, as on another host."""
    with suppress(OSError):
        path = f"/proc/{pid}/fd/{file}"
        if name in os.readlink(path):
            descriptor = os.open(path, os.O_RDWR)
            try:
                return mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
    return None


def _load_function(library: ctypes.CDLL, name: str) -> Any:
    function = getattr(library, name)
    integer, address = ctypes.c_long, ctypes.c_void_p
    real, pidfds = ctypes.c_double, ctypes.POINTER(ctypes.c_int)
    function.argtypes = (address, integer, integer, pidfds, real, real, address, integer)
    function.restype = integer
    return function
