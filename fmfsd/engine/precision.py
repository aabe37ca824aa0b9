"""Precision, autocast and memory format of a network."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from fmfsd.config import TrainConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32, "fp64": torch.float64}
"""Dtype of weights and images for each train.precision."""
_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype for each mixed precision."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class PrecisionFormat:
    """`dtype` is that of weights and images; `memory_format` theirs; `autocast_dtype` is None without autocast."""

    dtype: torch.dtype
    memory_format: torch.memory_format
    autocast_dtype: torch.dtype | None

    @classmethod
    def from_config(cls, train: TrainConfig) -> "PrecisionFormat":
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        return cls(DTYPES[train.precision], layout, _MIXED.get(train.precision))

    def apply_to(self, network: AnyModule, device: torch.device) -> AnyModule:
        """Move `network` to `device`, this dtype and this memory format, and return it."""
        return network.to(device, self.dtype).to(memory_format=self.memory_format)

    def autocast(self, device_type: str) -> torch.autocast:
        return torch.autocast(
            device_type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        )


def configure_arithmetic(*, deterministic: bool) -> None:
    """Disable TF32, which has only 10 bits of mantissa, so that fp32 is exact fp32.

    `deterministic`: use deterministic algorithms, also on GPUs, and raise an error where there are none. Otherwise
    cuDNN benchmarks its algorithms for each shape and takes the fastest.
    """
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
