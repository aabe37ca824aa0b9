"""Layers whose inner maps are computed again in the backward pass instead of kept (Chen et al. 2016,
arXiv:1604.06174)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)`, bit for bit, with its gradient and its batch statistics. The layers draw no random numbers."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(layers)

    return checkpoint(layers, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _statistics_kept(layers: nn.Module) -> Iterator[None]:
    """A second pass, which ends where all is there that was not kept, adds nothing to the running statistics."""
    with ExitStack() as stack:
        for norm in layers.modules():
            if isinstance(norm, _BatchNorm):
                repeating = getattr(norm, "repeating", partial(_nothing_added, norm))
                stack.enter_context(repeating())
        yield


@contextmanager
def _nothing_added(norm: _BatchNorm) -> Iterator[None]:
    momentum, count = norm.momentum, norm.num_batches_tracked
    before = count.clone() if count is not None else None
    norm.momentum = 0.0
    try:
        yield
    finally:
        norm.momentum = momentum
        if count is not None and before is not None:
            count.copy_(before)
