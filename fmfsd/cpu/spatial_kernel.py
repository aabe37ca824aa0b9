"""Autograd functions for spatial enhancement on a CPU, using the fused kernel `spatial.cpp`.

The kernel processes each map in the cache of one core; PyTorch's operations read and write it many times. Without a C++
compiler `spatial_enhancement` falls back to PyTorch's operations.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fmfsd.cpu import tensor_layout

supports = partial(tensor_layout.supports, "spatial")
"""Called with a map, gamma and beta: returns whether the kernel can process them."""


class GateFunction(torch.autograd.Function):
    """(B, C, H, W) -> (B, C, H, W): the map times its mask, in the map's dtype and memory format."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
        x = tensor_layout.to_dense(map_BCHW)
        ctx.save_for_backward(x, gamma_G, beta_G)
        gated = torch.empty_like(x)
        _call_kernel("forward", x, gamma_G, beta_G, gated, None)
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gamma_G, beta_G = ctx.saved_tensors
        return _backward(x, gamma_G, beta_G, gated=gradient_BCHW, mask=None)


class MaskFunction(torch.autograd.Function):
    """(B, C, H, W) -> the mask (B, G, H, W), in the dtype of gamma and the map's memory format."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
        x = tensor_layout.to_dense(map_BCHW)
        ctx.save_for_backward(x, gamma_G, beta_G)
        mask = torch.empty_like(
            x[:, : len(gamma_G)], dtype=gamma_G.dtype, memory_format=tensor_layout.memory_format_of(x)
        )
        _call_kernel("forward", x, gamma_G, beta_G, None, mask)
        return mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BGHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gamma_G, beta_G = ctx.saved_tensors
        return _backward(x, gamma_G, beta_G, gated=None, mask=gradient_BGHW)


def _backward(
    x: Tensor, gamma_G: Tensor, beta_G: Tensor, *, gated: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the map, gamma and beta, from that of the gated map or of the mask (the other: None)."""
    gradient = torch.empty_like(x)
    gamma_grad_BG, beta_grad_BG = (torch.empty(len(x), len(gamma_G), dtype=gamma_G.dtype) for _ in range(2))
    gated, mask = (None if each is None else tensor_layout.match_memory_format(x, each) for each in (gated, mask))
    _call_kernel("backward", x, gamma_G, beta_G, gated, mask, gradient, gamma_grad_BG, beta_grad_BG)
    return gradient, gamma_grad_BG.sum(dim=0), beta_grad_BG.sum(dim=0)


def _call_kernel(function: str, x: Tensor, gamma_G: Tensor, *others: Tensor | None) -> None:
    batch, channels, height, width = x.shape
    tensor_layout.call_kernel(
        "spatial", function, x, (x, gamma_G, *others), batch, channels, len(gamma_G), height * width
    )
