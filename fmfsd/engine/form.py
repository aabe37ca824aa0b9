"""In which precision and memory layout a network computes."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from fmfsd.config import LoopConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Type of weights and images for each precision; bf16 is autocast over fp32."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Form:
    """`dtype` is of weights and images; if `mixed`, autocast takes bf16 where that is safe."""

    dtype: torch.dtype
    layout: torch.memory_format
    mixed: bool

    @classmethod
    def of(cls, train: LoopConfig) -> "Form":
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        return cls(DTYPES[train.precision], layout, train.precision == "bf16")

    def given_to(self, network: AnyModule, device: torch.device) -> AnyModule:
        """`network`, on `device` and in this form from now on."""
        return network.to(device, self.dtype).to(memory_format=self.layout)

    def autocast(self, device_type: str) -> torch.autocast:
        return torch.autocast(device_type, torch.bfloat16, enabled=self.mixed)
