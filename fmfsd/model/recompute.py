"""Layers whose inner maps are computed again in the backward pass instead of kept (Chen et al. 2016,
arXiv:1604.06174)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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
    norms = [layer for layer in layers.modules() if isinstance(layer, _BatchNorm)]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    momenta, before = [norm.momentum for norm in norms], [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)
