"""Depthwise convolution, whose backward pass on a CPU is not left to bf16 where that is slow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A 3x3 filter a channel.

    On a CPU the backward pass of a strided one is computed in the type of its weights, under autocast too: oneDNN takes
    12 to 45 times as long for it in bf16 as in fp32 (3.13 of torch 2.15, maps of 32 to 8 pixels).
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / stride, W / stride)."""
        unlike = map_BCHW.dtype != self.weight.dtype
        if unlike and map_BCHW.device.type == "cpu" and self.stride != (1, 1):
            return _BackInFull.apply(map_BCHW, self.weight, self.stride)
        return super().forward(map_BCHW)


class _BackInFull(torch.autograd.Function):
    """In half precision forward, with weights in full precision, and in that backward."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(map_BCHW, weight)
        ctx.stride = stride
        return F.conv2d(map_BCHW, weight.to(map_BCHW.dtype), None, stride, padding=1, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        map_BCHW, weight = ctx.saved_tensors
        of_output, full, groups = gradients[0].to(weight.dtype), map_BCHW.to(weight.dtype), len(weight)
        of_map, of_weight, _ = torch.ops.aten.convolution_backward(
            of_output, full, weight, None, ctx.stride, [1, 1], [1, 1], False, [0, 0], groups, [True, True, False]
        )
        return of_map.to(map_BCHW.dtype), of_weight, None
