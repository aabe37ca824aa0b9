"""Layers whose inner maps are computed again in the backward pass instead of kept (Chen et al. 2016,
arXiv:1604.06174)."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@runtime_checkable
class Asking(Protocol):
    """A batch norm that asks others for its statistics: `last` has those of the last pass."""

    last: Any

    def repeating(self, statistics: Any) -> AbstractContextManager[None]:
        """Around a second pass over the maps that had these."""
        ...


def recomputed(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)`, bit for bit, with its gradient and its batch statistics. The layers draw no random numbers."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        found = dict[Asking, Any]()
        return _noted(layers, found), _statistics_kept(layers, found)

    return checkpoint(layers, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _noted(layers: nn.Module, found: dict[Asking, Any]) -> Iterator[None]:
    """After the first pass `found` has the statistics of norms that ask others for them."""
    yield
    found.update((norm, norm.last) for norm in _norms(layers) if isinstance(norm, Asking))


@contextmanager
def _statistics_kept(layers: nn.Module, found: Mapping[Asking, Any]) -> Iterator[None]:
    """A second pass, which ends where all is there that was not kept, adds nothing to the running statistics."""
    with ExitStack() as stack:
        for norm in _norms(layers):
            if isinstance(norm, Asking):
                stack.enter_context(norm.repeating(found[norm]))
            else:
                stack.enter_context(_nothing_added(norm))
        yield


def _norms(layers: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in layers.modules() if isinstance(layer, _BatchNorm)]


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
