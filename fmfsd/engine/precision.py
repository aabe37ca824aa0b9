"""In which precision and memory layout a network computes."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from fmfsd.config import TrainConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32, "fp64": torch.float64}
"""Type of weights and images for each precision."""
_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast over fp32 takes where that is safe."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Form:
    """`dtype` is of weights and images; `mixed` what autocast takes where that is safe, None if there is none."""

    dtype: torch.dtype
    layout: torch.memory_format
    mixed: torch.dtype | None

    @classmethod
    def of(cls, train: TrainConfig) -> "Form":
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        return cls(DTYPES[train.precision], layout, _MIXED.get(train.precision))

    def given_to(self, network: AnyModule, device: torch.device) -> AnyModule:
        """`network`, on `device` and in this form from now on."""
        return network.to(device, self.dtype).to(memory_format=self.layout)

    def autocast(self, device_type: str) -> torch.autocast:
        return torch.autocast(device_type, self.mixed or torch.bfloat16, enabled=self.mixed is not None)


def exact_arithmetic(*, deterministic: bool) -> None:
    """fp32 means fp32: cuDNN would otherwise use TF32, which keeps 10 bits of the mantissa.

    `deterministic`: and every sum has one order, on GPUs too, or the operation is refused; else cuDNN tries which of
    its algorithms is the fastest for each shape.
    """
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
