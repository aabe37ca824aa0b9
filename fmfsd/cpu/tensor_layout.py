"""Feature maps (B, C, H, W) for the C++ kernels: dense, contiguous or channels last, in a few dtypes."""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fmfsd.cpu import cpp_extension

_TYPES = {
    torch.bfloat16: ("Half", "float", torch.float32),
    torch.float32: ("float", "float", torch.float32),
    torch.float64: ("double", "double", torch.float64),
}
"""For each dtype of maps: its C++ type, the C++ type of the arithmetic, and the dtype of the factors."""

_kernels_disabled = ContextVar("_kernels_disabled", default=False)


@contextmanager
def disable_kernels() -> Iterator[None]:
    """Disable the kernels within the block, as if all maps were on another device."""
    token = _kernels_disabled.set(True)
    try:
        yield
    finally:
        _kernels_disabled.reset(token)


def supports(name: str, map_BCHW: Tensor, *factors: Tensor) -> bool:
    """Return whether the kernel `name`.cpp can process this map with these factors.

    It must be a CPU tensor or a fake CPU tensor, and not be traced by torch.compile.
    """
    if torch.compiler.is_compiling() or map_BCHW.device.type != "cpu" or type(map_BCHW) not in (Tensor, FakeTensor):
        return False
    if _kernels_disabled.get():
        return False
    types = _TYPES.get(map_BCHW.dtype)
    if types is None or not all(each.dtype == types[2] and each.is_contiguous() for each in factors):
        return False
    return _library(name, map_BCHW.dtype) is not None


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of a dense map."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def to_dense(x: Tensor) -> Tensor:
    """Return `x` as a dense tensor, contiguous or channels last."""
    x = x.resolve_neg()
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def match_memory_format(like: Tensor, x: Tensor) -> Tensor:
    """Return `x` in the memory format of the dense map `like`."""
    return x.resolve_neg().contiguous(memory_format=memory_format_of(like))


def call_kernel(name: str, function: str, x: Tensor, arrays: Iterable[Tensor | None], *sizes: int) -> None:
    """Call `function` of `name`.cpp, compiled for the dtype of x.

    Its arguments are the addresses of the arrays, the sizes, whether x is channels last, and the number of threads.
    """
    if isinstance(x, FakeTensor):
        return
    addresses = [ctypes.c_void_p(None if array is None else array.data_ptr()) for array in arrays]
    c_sizes = [ctypes.c_long(size) for size in sizes]
    library = _library(name, x.dtype)
    assert library is not None
    getattr(library, function)(
        *addresses, *c_sizes, int(memory_format_of(x) == torch.channels_last), torch.get_num_threads()
    )


def _library(name: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    storage_type, arithmetic_type, _ = _TYPES[dtype]
    return cpp_extension.load_library(name, f"T={storage_type}", f"A={arithmetic_type}")
