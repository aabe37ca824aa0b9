"""Synchronised batch normalisation that also works on CPU tensors and under torch.compile, unlike nn.SyncBatchNorm.

Ioffe & Szegedy 2015 (arXiv:1502.03167), with statistics over the global batch. Two small all-reduces per layer and
step: means and mean squares in the forward pass, the two gradient sums in the backward pass. Sums are in fp64, so that
subtracting squares loses no precision.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fmfsd.cpu import tensor_layout

Sum = Callable[[Tensor], Tensor]
"""Replaces a tensor by its sum over all workers, in place, and returns it."""
Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel, over all workers."""


def _sum_compiled(tensor: Tensor) -> Tensor:
    """Sum over all workers inside torch.compile, which can trace this call but not our collectives."""
    dist.all_reduce(tensor)
    return tensor


class _Normalise(torch.autograd.Function):
    """Normalise with the global statistics; the gradient flows through them to every worker's batch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        sum_: Sum,
        size: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.sum_, ctx.size = eps, sum_, size
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        saved = mean.new_empty(0)  # unused when statistics are given, but CUDA needs tensors
        _, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, saved, saved, False, ctx.eps, [False, True, True]
        )
        sums = ctx.sum_(torch.stack([weight_gradient, bias_gradient]).double()).to(mean.dtype)
        count = ctx.size * x.numel() // x.shape[1]
        scale = (variance + ctx.eps).rsqrt()
        gain = weight * scale
        slope = -gain * scale * sums[0] / count
        offset = -gain * sums[1] / count - slope * mean
        gradient = _combine(gradients[0], x, gain, slope, offset)
        return gradient, weight_gradient, bias_gradient, None, None, None, None, None


def _moments(x: Tensor, weight_C: Tensor) -> Tensor:
    """Return (2, C): mean and mean square of each channel of (B, C, H, W), in fp64."""
    if tensor_layout.supports("batch_norm", x, weight_C):
        batch, channels, height, width = x.shape
        x, moments = tensor_layout.to_dense(x), torch.empty(2, channels, dtype=torch.float64)
        tensor_layout.call_kernel("batch_norm", "moments", x, (x, moments), batch, channels, height * width)
        return moments
    unused = torch.zeros_like(weight_C)  # with running statistics, the statistics of a bf16 batch are in fp32
    mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
    return torch.stack([mean.double(), variance.double() + mean.double().square()])


def _combine(one: Tensor, other: Tensor, scale1_C: Tensor, scale2_C: Tensor, offset_C: Tensor) -> Tensor:
    """Return scale1 * one + scale2 * other + offset per channel, for maps (B, C, H, W), in their own dtype."""
    if not tensor_layout.supports("batch_norm", other, offset_C):
        return _affine(one, scale1_C, torch.zeros_like(offset_C)).add_(_affine(other, scale2_C, offset_C))
    y = tensor_layout.to_dense(other)
    x, result = tensor_layout.match_memory_format(y, one), torch.empty_like(y)
    batch, channels, height, width = y.shape
    tensor_layout.call_kernel(
        "batch_norm", "combine", y, (x, y, scale1_C, scale2_C, offset_C, result), batch, channels, height * width
    )
    return result


def _affine(x: Tensor, slope_C: Tensor, offset_C: Tensor) -> Tensor:
    """Return slope * x + offset per channel, in the dtype of x, in one pass: batch norm with fixed statistics."""
    zeros, ones = torch.zeros_like(slope_C), torch.ones_like(slope_C)
    # F.batch_norm refuses eps 0 in torch 2.11
    return torch.batch_norm(x, slope_C, offset_C, zeros, ones, False, 0.0, 0.0, torch.backends.cudnn.enabled)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with training statistics over the equal batches of all `size` workers, which `sum_` adds up."""

    def __init__(self, like: nn.BatchNorm2d, sum_: Sum, size: int) -> None:
        device, dtype = like.weight.device, like.weight.dtype
        super().__init__(like.num_features, eps=like.eps, momentum=like.momentum, device=device, dtype=dtype)
        self.load_state_dict(like.state_dict())
        self._sum, self._size = sum_, size
        self._reused: Statistics | None = None
        self.last_statistics: Statistics | None = None

    @contextmanager
    def reuse_statistics(self, statistics: Statistics) -> Iterator[None]:
        """Normalise with `statistics` within the block, without an all-reduce: a second pass over the same maps."""
        self._reused = statistics
        try:
            yield
        finally:
            self._reused = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance = self._reused or self._statistics(x.detach())
        if self._reused is None:
            self._update_running_statistics(mean, variance, self._size * x.numel() // x.shape[1])
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, self.eps, self._select_sum(), self._size)

    def _statistics(self, x: Tensor) -> Statistics:
        """Return mean and biased variance over all workers, in the dtype of the weights."""
        mean64, square64 = self._select_sum()(_moments(x, self.weight)) / self._size
        dtype = self.weight.dtype
        return mean64.to(dtype), (square64 - mean64.square()).clamp_min(0).to(dtype)

    def _select_sum(self) -> Sum:
        return _sum_compiled if torch.compiler.is_compiling() else self._sum

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        if not torch.compiler.is_compiling():
            self.last_statistics = mean, variance
        self.running_mean.lerp_(mean, self.momentum or 0.0)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum or 0.0)


def convert_batch_norm(network: nn.Module, sum_: Sum, size: int) -> None:
    """Replace every `nn.BatchNorm2d` inside `network` by one that is synchronised over `size` workers."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SyncBatchNorm2d(child, sum_, size))
