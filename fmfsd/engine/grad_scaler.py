"""Dynamic loss scaling for fp16: the loss is multiplied by a power of two, so that small gradients don't underflow.

Micikevicius et al. 2018 (arXiv:1710.03740), with the constants of `torch.amp.GradScaler`, which can't leave unscaling
to ZeRO.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmfsd.engine.interface import LOSS_SCALE_PREFIX
from fmfsd.errors import NonFiniteLossError

_GROWTH_INTERVAL = 2000


@dataclass
class GradScaler:
    """A loss scale: doubled after 2000 finite steps, halved by each step that overflows, which is skipped."""

    value: float = 2.0**16
    good_steps: int = 0
    """Finite steps since the scale last changed."""

    def unscale_(self, gradients: Iterable[Tensor]) -> bool:
        """Divide `gradients` by the scale in place and update the scale; return whether all gradients are finite."""
        divided = [gradient.div_(self.value) for gradient in gradients]
        finite = bool(nn.utils.get_total_norm(divided).isfinite())
        self.update(finite=finite)
        return finite

    def update(self, *, finite: bool) -> None:
        """Update the scale after a step. Raises NonFiniteLossError if gradients overflow with a scale of 1."""
        if not finite and self.value <= 1:
            raise NonFiniteLossError(
                "the gradients overflow fp16, even with a loss scale of 1. Earlier checkpoints remain. "
                "Set train.precision to bf16 or fp32, or lower optim.lr"
            )
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps == _GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> dict[str, Tensor]:
        """Return the state, with its keys in `EngineState.optimizer`."""
        return {
            f"{LOSS_SCALE_PREFIX}value": torch.tensor(self.value),
            f"{LOSS_SCALE_PREFIX}good_steps": torch.tensor(self.good_steps),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the scale; do nothing if `state`, of a run in another precision, has none."""
        if f"{LOSS_SCALE_PREFIX}value" in state:
            self.value, self.good_steps = (
                state[f"{LOSS_SCALE_PREFIX}value"].item(),
                int(state[f"{LOSS_SCALE_PREFIX}good_steps"]),
            )
