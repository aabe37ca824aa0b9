"""A network and its losses as one module, and that as one program."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn

from fmfsd.config import RunConfig, TrainConfig
from fmfsd.losses import LossTerms, SelfDistillLoss
from fmfsd.system.compilers import missing_for_compile


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


def is_compiled(config: RunConfig, device: torch.device) -> bool:
    """Whether passes are one program. `auto`: on a GPU, where a compiler can work and nothing forbids it."""
    if config.train.compile != "auto":
        return config.train.compile in (True, "cuda_graphs")
    return device.type == "cuda" and not missing_for_compile("cuda") and may_be_compiled(config)


def may_be_compiled(config: RunConfig) -> bool:
    """Whether passes on a GPU are one program where a compiler can work."""
    if config.train.compile != "auto" or config.engine.name != "torch":
        return config.train.compile in (True, "cuda_graphs")
    return config.train.recompute in ("auto", "none")


def compiled(module: nn.Module, train: TrainConfig) -> nn.Module:
    """`module` as one program, for batches of one shape. DDP around it cuts the program where its buckets end, so that
    their gradients travel meanwhile."""
    mode = "reduce-overhead" if train.compile == "cuda_graphs" else None
    return cast("nn.Module", torch.compile(module, fullgraph=True, dynamic=False, mode=mode))
