"""A network and its losses as one module, and that as one program."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fmfsd.config import LoopConfig
from fmfsd.distill import LossTerms, SelfDistillLoss

COMPILERS = ("gcc", "clang")
"""One of these Triton wants for what launches its kernels."""


class TrainingPass(nn.Module):
    """Images (b, 3, H, W) and labels of a worker's batch to the terms of its loss; the network under autocast."""

    def __init__(
        self, network: nn.Module, loss: SelfDistillLoss, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        super().__init__()
        self.network = network
        self._loss, self._autocast = loss, autocast

    def forward(self, images: Tensor, labels: Tensor) -> LossTerms:
        with self._autocast():
            outputs = self.network(images)
        return self._loss.terms(outputs, labels)


def is_compiled(train: LoopConfig, device: torch.device, *, synchronised: bool) -> bool:
    """Whether passes are one program. `auto`: on a GPU, unless batch norm talks to other workers in their midst."""
    if train.compile != "auto":
        return bool(train.compile)
    on_gpu, able = device.type == "cuda", any(map(shutil.which, COMPILERS))
    return on_gpu and able and not synchronised and train.recompute in ("auto", "none")


def compiled(module: nn.Module, train: LoopConfig, *, synchronised: bool) -> Callable[[Tensor, Tensor], LossTerms]:
    """`module` by torch.compile, for batches of one shape; cut where batch norm is synchronised, else whole."""
    mode = "reduce-overhead" if train.compile == "cuda_graphs" else None
    return torch.compile(module, fullgraph=not synchronised, dynamic=False, mode=mode)
