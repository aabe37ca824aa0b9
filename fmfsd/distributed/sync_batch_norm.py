"""Batch normalisation over all workers' batches, on CPU tensors and in compiled programs too, which torch's
SyncBatchNorm is not for.

Ioffe & Szegedy 2015 (arXiv:1502.03167), statistics over the global batch. Two small all-reduces a layer and step: means
and squares forward, the two sums of the gradient backward. Sums are in fp64: subtracting squares then costs no digits.
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
"""All workers' sum of a tensor, in place."""
Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel, over all workers."""


def _sum_in_a_program(tensor: Tensor) -> Tensor:
    """All workers', where a compiler reads along: it knows this call, and none of ours."""
    dist.all_reduce(tensor)
    return tensor


class _Normalise(torch.autograd.Function):
    """Normalises with the global statistics; the gradient passes through them to every worker's batch."""

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
        saved = mean.new_empty(0)  # not read where statistics are given, but CUDA wants tensors
        _, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, saved, saved, False, ctx.eps, [False, True, True]
        )
        sums = ctx.sum_(torch.stack([weight_gradient, bias_gradient]).double()).to(mean.dtype)
        count = ctx.size * x.numel() // x.shape[1]
        scale = (variance + ctx.eps).rsqrt()
        steepness = weight * scale
        slope = -steepness * scale * sums[0] / count
        offset = -steepness * sums[1] / count - slope * mean
        gradient = _combined(gradients[0], x, steepness, slope, offset)
        return gradient, weight_gradient, bias_gradient, None, None, None, None, None


def _moments(x: Tensor, weight_C: Tensor) -> Tensor:
    """(2, C): mean and mean square of each channel of (B, C, H, W), in fp64."""
    if tensor_layout.takes("batch_norm", x, weight_C):
        batch, channels, height, width = x.shape
        x, found = tensor_layout.dense(x), torch.empty(2, channels, dtype=torch.float64)
        tensor_layout.run("batch_norm", "moments", x, (x, found), batch, channels, height * width)
        return found
    unused = torch.zeros_like(weight_C)  # given running statistics, those of a bf16 batch come in fp32
    mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
    return torch.stack([mean.double(), variance.double() + mean.double().square()])


def _combined(one: Tensor, other: Tensor, of_one_C: Tensor, of_other_C: Tensor, offset_C: Tensor) -> Tensor:
    """of_one * one + of_other * other + offset, by channel, of maps (B, C, H, W) in their own type."""
    if not tensor_layout.takes("batch_norm", other, offset_C):
        return _line(one, of_one_C, torch.zeros_like(offset_C)).add_(_line(other, of_other_C, offset_C))
    y = tensor_layout.dense(other)
    x, result = tensor_layout.laid_out_as(y, one), torch.empty_like(y)
    batch, channels, height, width = y.shape
    tensor_layout.run(
        "batch_norm", "combine", y, (x, y, of_one_C, of_other_C, offset_C, result), batch, channels, height * width
    )
    return result


def _line(x: Tensor, slope_C: Tensor, offset_C: Tensor) -> Tensor:
    """slope * x + offset by channel, in the type of x: what batch norm is given its statistics, in one pass."""
    zeros, ones = torch.zeros_like(slope_C), torch.ones_like(slope_C)
    # F.batch_norm refuses eps 0 in torch 2.11
    return torch.batch_norm(x, slope_C, offset_C, zeros, ones, False, 0.0, 0.0, torch.backends.cudnn.enabled)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the training statistics of all `size` workers' equal batches; `sum_` reaches them."""

    def __init__(self, like: nn.BatchNorm2d, sum_: Sum, size: int) -> None:
        place, kind = like.weight.device, like.weight.dtype
        super().__init__(like.num_features, eps=like.eps, momentum=like.momentum, device=place, dtype=kind)
        self.load_state_dict(like.state_dict())
        self._sum, self._size = sum_, size
        self._repeated: Statistics | None = None
        self.last: Statistics | None = None

    @contextmanager
    def repeating(self, statistics: Statistics) -> Iterator[None]:
        """Passes over the maps of an earlier one, which had these statistics (its `last`): nobody is asked again."""
        self._repeated = statistics
        try:
            yield
        finally:
            self._repeated = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance = self._repeated or self._statistics(x.detach())
        if self._repeated is None:
            self._remember(mean, variance, self._size * x.numel() // x.shape[1])
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, self.eps, self._asks(), self._size)

    def _statistics(self, x: Tensor) -> Statistics:
        """Mean and biased variance over all workers, in the type of the weights."""
        mean64, square64 = self._asks()(_moments(x, self.weight)) / self._size
        kind = self.weight.dtype
        return mean64.to(kind), (square64 - mean64.square()).clamp_min(0).to(kind)

    def _asks(self) -> Sum:
        return _sum_in_a_program if torch.compiler.is_compiling() else self._sum

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        if not torch.compiler.is_compiling():
            self.last = mean, variance
        self.running_mean.lerp_(mean, self.momentum or 0.0)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum or 0.0)


def synchronise_batch_norm(network: nn.Module, sum_: Sum, size: int) -> None:
    """Replace every `nn.BatchNorm2d` inside `network` by one over `size` workers."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, GlobalBatchNorm2d(child, sum_, size))
