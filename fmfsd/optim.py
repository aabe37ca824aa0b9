"""The optimizer, and the learning rate as a function of the step."""

from collections.abc import Sequence

import torch
from torch import nn

from fmfsd.config import OptimConfig


def build_optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD; weight decay on every parameter, as the paper's line of work does."""
    return torch.optim.SGD(
        network.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
        fused=True,
    )


def learning_rate(step: int, *, base: float, gamma: float, milestones: Sequence[int]) -> float:
    """The rate of the step that follows `step` finished ones: `base` times `gamma` for each milestone reached."""
    return base * gamma ** sum(step >= milestone for milestone in milestones)
