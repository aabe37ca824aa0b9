"""In which precision and memory layout a network computes."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from fmfsd.config import LoopConfig

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
    def of(cls, train: LoopConfig) -> "Form":
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        return cls(DTYPES[train.precision], layout, _MIXED.get(train.precision))

    def given_to(self, network: AnyModule, device: torch.device) -> AnyModule:
        """`network`, on `device` and in this form from now on."""
        return network.to(device, self.dtype).to(memory_format=self.layout)

    def autocast(self, device_type: str) -> torch.autocast:
        return torch.autocast(device_type, self.mixed or torch.bfloat16, enabled=self.mixed is not None)
