"""The interface between the trainer and an engine."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fmfsd.losses import LossTerms
from fmfsd.model.network import Outputs

EMA_SUFFIX = ".average"
LOSS_SCALE_PREFIX = "loss_scale."


@dataclass(frozen=True)
class EngineState:
    """The complete state of an engine for resuming, as named tensors; independent of the number of workers.

    `model` has parameters and buffers; `optimizer` has the optimizer state of each parameter as `<parameter>.<key>`,
    and is empty before the first step. Optimizer settings come from the config. `optimizer` also has the EMA of each
    parameter and buffer as `<name>.average`, and in fp16 the 0-dimensional `loss_scale.value` and
    `loss_scale.good_steps`.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @property
    def ema_weights(self) -> dict[str, Tensor]:
        """Return the EMA of parameters and buffers by name; empty without EMA."""
        return {
            name.removesuffix(EMA_SUFFIX): value for name, value in self.optimizer.items() if name.endswith(EMA_SUFFIX)
        }

    @property
    def evaluated_weights(self) -> dict[str, Tensor]:
        """Return the weights and buffers for evaluation and export: the EMA if there is one."""
        return self.ema_weights or self.model


class Engine(Protocol):
    """A network in training: forward, backward, optimizer step and state. `network` is the unwrapped module."""

    network: nn.Module
    head_names: tuple[str, ...]

    is_compiled: bool
    """True if `warm_up` compiles the training pass, which takes minutes."""

    @property
    def loss_scale(self) -> float | None:
        """Return the loss scale of the next backward pass in fp16, else None."""
        ...

    def compute_terms(self, images: Tensor, labels: Tensor) -> LossTerms:
        """Run a forward pass in training, in the engine's precision and memory format; return the terms of the loss."""
        ...

    @property
    def evaluated_network(self) -> nn.Module:
        """Return the unwrapped module that `predict` runs."""
        ...

    def predict(self, images: Tensor) -> Outputs:
        """Run a forward pass in evaluation mode, without gradients or collectives; with the EMA if there is one."""
        ...

    def unify_buffers(self) -> None:
        """Make batch statistics equal on all workers before an evaluation, if training does not synchronise them."""
        ...

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context for a micro-batch's forward and backward pass; gradients are reduced at the `last` one."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def gradients(self) -> Mapping[str, Tensor]:
        """Return the gradients of the next step by parameter name, reduced over all workers, before clipping."""
        ...

    def step(self, learning_rate: float) -> None:
        """Take an optimizer step with the accumulated gradients and clear them; skip it if they overflowed in fp16."""
        ...

    def warm_up(self, forward_and_backward: Callable[[], None]) -> None:
        """Run passes without side effects, for compilation and DDP's bucket order."""
        ...

    def weights_checksum(self) -> Tensor:
        """Return a 0-dimensional checksum of all parameters; it is equal on workers with equal weights."""
        ...

    def state(self) -> EngineState: ...

    def load(self, state: EngineState) -> None:
        """Restore `state`; memory format and device do not change."""
        ...
