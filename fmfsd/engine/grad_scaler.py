"""The loss scale of fp16: gradients are computed times a power of two, so that small ones don't vanish.

Micikevicius et al. 2018 (arXiv:1710.03740), with the figures of `torch.amp.GradScaler`, which can't be asked to leave
the dividing to ZeRO.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmfsd.engine.interface import SCALE
from fmfsd.errors import NonFiniteLossError

_GROWS_AFTER = 2000


@dataclass
class LossScale:
    """Doubled after 2000 steps that went well, halved by each that overflowed, which is left out."""

    value: float = 2.0**16
    good_steps: int = 0
    """Since it last changed."""

    def divide(self, gradients: Iterable[Tensor]) -> bool:
        """Take the scale out of `gradients`, in place; whether all are finite, so that the step can be taken."""
        divided = [gradient.div_(self.value) for gradient in gradients]
        fits = bool(nn.utils.get_total_norm(divided).isfinite())
        self.update(fits=fits)
        return fits

    def update(self, *, fits: bool) -> None:
        """Raises NonFiniteLossError when gradients overflow without any scale."""
        if not fits and self.value <= 1:
            raise NonFiniteLossError(
                "the gradients overflow fp16, even with a loss scale of 1. Earlier checkpoints stay. "
                "Set train.precision to bf16 or fp32, or lower optim.lr"
            )
        self.good_steps = self.good_steps + 1 if fits else 0
        if not fits:
            self.value /= 2
        elif self.good_steps == _GROWS_AFTER:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> dict[str, Tensor]:
        """By the names that `EngineState.optimizer` has for it."""
        return {f"{SCALE}value": torch.tensor(self.value), f"{SCALE}good_steps": torch.tensor(self.good_steps)}

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """It stays as it is if `kept`, of a run in another precision, has none."""
        if f"{SCALE}value" in kept:
            self.value, self.good_steps = kept[f"{SCALE}value"].item(), int(kept[f"{SCALE}good_steps"])
