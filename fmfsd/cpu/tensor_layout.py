"""Maps, (B, C, H, W), as our C++ takes them: dense, in one of two layouts, of a few types."""

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
"""Of maps: their name in C++, that of what is computed in, and the type of factors."""


_are_left_out = ContextVar("_are_left_out", default=False)


@contextmanager
def left_out() -> Iterator[None]:
    """Within the block no map is taken, as if all were on another device, for which they may stand."""
    token = _are_left_out.set(True)
    try:
        yield
    finally:
        _are_left_out.reset(token)


def takes(name: str, map_BCHW: Tensor, *factors: Tensor) -> bool:
    """Whether `name`.cpp can have this map and factors: one in this machine's memory, or one without memory that stands
    for such a map, but none that is traced."""
    if torch.compiler.is_compiling() or map_BCHW.device.type != "cpu" or type(map_BCHW) not in (Tensor, FakeTensor):
        return False
    if _are_left_out.get():
        return False
    known = _TYPES.get(map_BCHW.dtype)
    if known is None or not all(each.dtype == known[2] and each.is_contiguous() for each in factors):
        return False
    return _library(name, map_BCHW.dtype) is not None


def layout(x: Tensor) -> torch.memory_format:
    """Of a dense map."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def dense(x: Tensor) -> Tensor:
    x = x.resolve_neg()
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """x in the layout of a dense map."""
    return x.resolve_neg().contiguous(memory_format=layout(like))


def run(name: str, function: str, x: Tensor, arrays: Iterable[Tensor | None], *sizes: int) -> None:
    """`function` of `name`.cpp for maps like x: by the arrays' addresses, the sizes, x's layout and the threads."""
    if isinstance(x, FakeTensor):
        return
    addresses = [ctypes.c_void_p(None if array is None else array.data_ptr()) for array in arrays]
    numbers = [ctypes.c_long(size) for size in sizes]
    library = _library(name, x.dtype)
    assert library is not None
    getattr(library, function)(*addresses, *numbers, int(layout(x) == torch.channels_last), torch.get_num_threads())


def _library(name: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    stored, computed, _ = _TYPES[dtype]
    return cpp_extension.library(name, f"T={stored}", f"A={computed}")
