"""What the trainer asks of an engine."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fmfsd.losses import LossTerms
from fmfsd.model.network import Outputs

AVERAGE = ".average"
SCALE = "loss_scale."


@dataclass(frozen=True)
class EngineState:
    """Everything an engine needs to go on, by name; the same for any number of workers.

    `model` has parameters and buffers; `optimizer` what it keeps of a parameter, as `<parameter>.<key>`, and nothing
    before its first step. Its settings come from the config. With averaged weights, `<name>.average` is the average of
    a parameter or buffer; in fp16, `loss_scale.value` and `loss_scale.good_steps` are of no dimension.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @property
    def averages(self) -> dict[str, Tensor]:
        """By name; empty without averaged weights."""
        return {name.removesuffix(AVERAGE): value for name, value in self.optimizer.items() if name.endswith(AVERAGE)}

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """The weights and buffers that are evaluated, and that a network for use should have: averaged if any are."""
        return self.averages or self.model


class Engine(Protocol):
    """A network in training: forward, backward, step, and its state. `network` is the bare module."""

    network: nn.Module
    head_names: tuple[str, ...]

    is_compiled: bool
    """Whether `warm_up` has something to compile, which takes minutes."""

    @property
    def loss_scale(self) -> float | None:
        """By which the next backward pass multiplies; None but in fp16."""
        ...

    def terms(self, images: Tensor, labels: Tensor) -> LossTerms:
        """A training pass, in the engine's precision and layout, and what its loss is made of."""
        ...

    @property
    def evaluated(self) -> nn.Module:
        """The bare module that `predict` asks."""
        ...

    def predict(self, images: Tensor) -> Outputs:
        """An evaluation pass, without gradients and without the other workers; by averaged weights, if there are."""
        ...

    def unify_buffers(self) -> None:
        """Give every worker the same batch statistics before an evaluation, where training leaves them apart."""
        ...

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch; gradients meet at the step's `last` one."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def gradients(self) -> Mapping[str, Tensor]:
        """By parameter, over all workers, as the next step finds them, which may clip them."""
        ...

    def step(self, learning_rate: float) -> None:
        """One optimizer step with what was accumulated, which is then forgotten; none if it overflowed in fp16."""
        ...

    def warm_up(self, forward_and_backward: Callable[[], None]) -> None:
        """Let the engine settle by passes that leave no trace."""
        ...

    def weights_checksum(self) -> Tensor:
        """Of all parameters, of no dimension: workers with the same weights have the same, others hardly ever."""
        ...

    def state(self) -> EngineState: ...

    def load(self, state: EngineState) -> None:
        """Put `state` in place; layout and device stay the engine's."""
        ...
