"""Activation checkpointing: recompute activations in the backward pass instead of storing them.

Chen et al. 2016 (arXiv:1604.06174), with batch norm whose statistics are not counted twice.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@runtime_checkable
class ReusableBatchNorm(Protocol):
    """A synchronised batch norm; `last_statistics` are those of its last forward pass."""

    last_statistics: Any

    def reuse_statistics(self, statistics: Any) -> AbstractContextManager[None]:
        """Normalise with `statistics` within the block: a second forward pass over the same maps."""
        ...


def checkpoint_activations(layers: nn.Module, x: Tensor) -> Tensor:
    """Return `layers(x)` with activation checkpointing; output, gradient and batch statistics are bit-identical.

    The layers must not draw random numbers.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        statistics = dict[ReusableBatchNorm, Any]()
        return _recording(layers, statistics), _replaying(layers, statistics)

    return checkpoint(layers, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _recording(layers: nn.Module, statistics: dict[ReusableBatchNorm, Any]) -> Iterator[None]:
    """Store the statistics of synchronised batch norms after the first forward pass."""
    yield
    statistics.update((norm, norm.last_statistics) for norm in _norms(layers) if isinstance(norm, ReusableBatchNorm))


@contextmanager
def _replaying(layers: nn.Module, statistics: Mapping[ReusableBatchNorm, Any]) -> Iterator[None]:
    """Reuse `statistics` in the second forward pass, and leave the running statistics of all batch norms unchanged.

    torch may end that pass early, as soon as all missing activations are recomputed.
    """
    with ExitStack() as stack:
        for norm in _norms(layers):
            if isinstance(norm, ReusableBatchNorm):
                stack.enter_context(norm.reuse_statistics(statistics[norm]))
            else:
                stack.enter_context(_running_statistics_fixed(norm))
        yield


def _norms(layers: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in layers.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def _running_statistics_fixed(norm: _BatchNorm) -> Iterator[None]:
    momentum, count = norm.momentum, norm.num_batches_tracked
    before = count.clone() if count is not None else None
    norm.momentum = 0.0
    try:
        yield
    finally:
        norm.momentum = momentum
        if count is not None and before is not None:
            count.copy_(before)
