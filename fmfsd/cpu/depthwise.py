"""Depthwise convolution whose backward pass on a CPU runs in fp32 where bf16 is slow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """3x3 depthwise convolution.

    On a CPU the backward pass of a strided one is computed in the dtype of its weights, under autocast too: in bf16
    oneDNN takes 12 to 45 times as long as in fp32 (oneDNN 3.13 of torch 2.15, maps of 32 to 8 pixels).
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / stride, W / stride)."""
        mixed_precision = map_BCHW.dtype != self.weight.dtype
        if mixed_precision and map_BCHW.device.type == "cpu" and self.stride != (1, 1):
            return _FullPrecisionBackward.apply(map_BCHW, self.weight, self.stride)
        return super().forward(map_BCHW)


class _FullPrecisionBackward(torch.autograd.Function):
    """Strided depthwise convolution: forward in the dtype of the map, backward in the dtype of the weights."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(map_BCHW, weight)
        ctx.stride = stride
        return F.conv2d(map_BCHW, weight.to(map_BCHW.dtype), None, stride, padding=1, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        map_BCHW, weight = ctx.saved_tensors
        output_grad, full, groups = gradients[0].to(weight.dtype), map_BCHW.to(weight.dtype), len(weight)
        map_grad, weight_grad, _ = torch.ops.aten.convolution_backward(
            output_grad, full, weight, None, ctx.stride, [1, 1], [1, 1], False, [0, 0], groups, [True, True, False]
        )
        return map_grad.to(map_BCHW.dtype), weight_grad, None
