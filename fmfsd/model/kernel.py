"""Spatial enhancement on a CPU by our own kernel, `spatial.cpp`, which has each map in a core's cache meanwhile.

PyTorch's operations read and write a map many times over for it. The kernel is compiled at its first use by the
machine's C++ compiler and kept in the user's cache; where there is none, `enhance` takes PyTorch's operations.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from fmfsd.files import read_private

COMPILER = "c++"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
_TYPES = {
    torch.bfloat16: ("Half", "float", torch.float32),
    torch.float32: ("float", "float", torch.float32),
    torch.float64: ("double", "double", torch.float64),
}
"""Of maps: their name in C++, that of what is computed in, and the type of gamma and beta."""

log = logging.getLogger(__name__)


def takes(map_BCHW: Tensor, gamma_G: Tensor) -> bool:
    """Whether the kernel can have this map: one in this machine's memory, or one without memory that stands for such a
    map, but none that is traced."""
    if torch.compiler.is_compiling() or map_BCHW.device.type != "cpu" or type(map_BCHW) not in (Tensor, FakeTensor):
        return False
    known = _TYPES.get(map_BCHW.dtype)
    return known is not None and known[2] == gamma_G.dtype and _library(map_BCHW.dtype) is not None


class Gated(torch.autograd.Function):
    """(B, C, H, W) -> (B, C, H, W): the map times its mask, in its own type and layout."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
        x = _dense(map_BCHW)
        ctx.save_for_backward(x, gamma_G, beta_G)
        gated = torch.empty_like(x)
        _run("forward", x, (x, gamma_G, beta_G, gated, None), groups=len(gamma_G))
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gamma_G, beta_G = ctx.saved_tensors
        return _gradients(x, gamma_G, beta_G, gated=gradient_BCHW, mask=None)


class Mask(torch.autograd.Function):
    """(B, C, H, W) -> the mask (B, G, H, W), in the type of gamma and the map's layout."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
        x = _dense(map_BCHW)
        ctx.save_for_backward(x, gamma_G, beta_G)
        mask = torch.empty_like(x[:, : len(gamma_G)], dtype=gamma_G.dtype, memory_format=_layout(x))
        _run("forward", x, (x, gamma_G, beta_G, None, mask), groups=len(gamma_G))
        return mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BGHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gamma_G, beta_G = ctx.saved_tensors
        return _gradients(x, gamma_G, beta_G, gated=None, mask=gradient_BGHW)


def _gradients(
    x: Tensor, gamma_G: Tensor, beta_G: Tensor, *, gated: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the map, gamma and beta; one of the gradients that come in is None."""
    gradient = torch.empty_like(x)
    of_gamma_BG, of_beta_BG = (torch.empty(len(x), len(gamma_G), dtype=gamma_G.dtype) for _ in range(2))
    gated, mask = (None if each is None else each.contiguous(memory_format=_layout(x)) for each in (gated, mask))
    arrays = (x, gamma_G, beta_G, gated, mask, gradient, of_gamma_BG, of_beta_BG)
    _run("backward", x, arrays, groups=len(gamma_G))
    return gradient, of_gamma_BG.sum(dim=0), of_beta_BG.sum(dim=0)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _run(function: str, x: Tensor, arrays: Iterable[Tensor | None], *, groups: int) -> None:
    if isinstance(x, FakeTensor):
        return
    batch, channels, height, width = x.shape
    addresses = [ctypes.c_void_p(None if array is None else array.data_ptr()) for array in arrays]
    sizes = [ctypes.c_long(size) for size in (batch, channels, groups, height * width)]
    library = _library(x.dtype)
    assert library is not None
    getattr(library, function)(*addresses, *sizes, int(_layout(x) == torch.channels_last), torch.get_num_threads())


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernel for maps of that type; None where it can't be compiled."""
    try:
        return ctypes.CDLL(str(_compiled(*_TYPES[dtype][:2])))
    except (OSError, subprocess.CalledProcessError) as error:
        log.info(
            "masks are computed by PyTorch's operations, which takes longer: no kernel could be compiled: %s", error
        )
        return None


def _compiled(stored: str, computed: str) -> Path:
    """The library for maps of that type, from the cache if it is there and nobody else may have written it."""
    source, flags = Path(__file__).with_name("spatial.cpp"), (*FLAGS, f"-DT={stored}", f"-DA={computed}")
    key = hashlib.sha256(b"\0".join([source.read_bytes(), " ".join(flags).encode(), _processor()])).hexdigest()
    folder = user_cache_path("fmfsd") / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    library = folder / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # others may be compiling it too
            made = Path(scratch) / library.name
            subprocess.run([COMPILER, *flags, str(source), "-o", str(made)], check=True, capture_output=True)
            made.chmod(0o700)
            os.replace(made, library)
    read_private(library)
    return library


def _processor() -> bytes:
    """What `-march=native` depends on: a home folder may be shared by machines with several kinds of processors."""
    path = Path("/proc/cpuinfo")
    lines = path.read_bytes().split(b"\n\n")[0].splitlines() if path.exists() else [platform.processor().encode()]
    return b"\n".join(
        line for line in lines if line.startswith((b"model name", b"flags", b"Features")) or len(lines) == 1
    )
