"""A network and its loss as one module, and its compilation with torch.compile."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn

from fmfsd.config import RunConfig, TrainConfig
from fmfsd.losses import LossTerms, SelfDistillLoss
from fmfsd.system.compile_requirements import find_missing_compiler


class TrainingPass(nn.Module):
    """Computes the loss terms of a worker's images (b, 3, H, W) and labels; the network runs under autocast."""

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


def is_compiled(config: RunConfig, device: torch.device) -> bool:
    """Return whether training passes are compiled. `auto`: on a GPU, if its compiler works and nothing forbids it."""
    if config.train.compile != "auto":
        return config.train.compile in (True, "cuda_graphs")
    return device.type == "cuda" and not find_missing_compiler("cuda") and may_be_compiled(config)


def may_be_compiled(config: RunConfig) -> bool:
    """Return whether training passes on a GPU are compiled, provided that the compiler works."""
    if config.train.compile != "auto" or config.engine.name != "torch":
        return config.train.compile in (True, "cuda_graphs")
    return config.train.recompute in ("auto", "none")


def compile_module(module: nn.Module, train: TrainConfig) -> nn.Module:
    """Compile `module` for batches of one shape. DDP splits the graph at its buckets, to overlap communication."""
    mode = "reduce-overhead" if train.compile == "cuda_graphs" else None
    return cast("nn.Module", torch.compile(module, fullgraph=True, dynamic=False, mode=mode))
