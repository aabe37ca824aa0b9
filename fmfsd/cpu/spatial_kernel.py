"""Spatial enhancement on a CPU by our own kernel, `spatial.cpp`, which has each map in a core's cache meanwhile.

PyTorch's operations read and write a map many times over for it; without a compiler `enhance` takes them.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fmfsd.cpu import tensor_layout

takes = partial(tensor_layout.takes, "spatial")
"""Of a map, gamma and beta: whether the kernel can have them."""


class Gated(torch.autograd.Function):
    """(B, C, H, W) -> (B, C, H, W): the map times its mask, in its own type and layout."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
        x = tensor_layout.dense(map_BCHW)
        ctx.save_for_backward(x, gamma_G, beta_G)
        gated = torch.empty_like(x)
        _run("forward", x, gamma_G, beta_G, gated, None)
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
        x = tensor_layout.dense(map_BCHW)
        ctx.save_for_backward(x, gamma_G, beta_G)
        mask = torch.empty_like(x[:, : len(gamma_G)], dtype=gamma_G.dtype, memory_format=tensor_layout.layout(x))
        _run("forward", x, gamma_G, beta_G, None, mask)
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
    gated, mask = (None if each is None else tensor_layout.laid_out_as(x, each) for each in (gated, mask))
    _run("backward", x, gamma_G, beta_G, gated, mask, gradient, of_gamma_BG, of_beta_BG)
    return gradient, of_gamma_BG.sum(dim=0), of_beta_BG.sum(dim=0)


def _run(function: str, x: Tensor, gamma_G: Tensor, *others: Tensor | None) -> None:
    batch, channels, height, width = x.shape
    tensor_layout.run("spatial", function, x, (x, gamma_G, *others), batch, channels, len(gamma_G), height * width)
