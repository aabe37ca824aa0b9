"""The optimizer, and the learning rate as a function of the step."""

from collections.abc import Sequence

import torch
from torch import nn

from fmfsd.config import OptimConfig


def build_optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on every parameter, as the paper's line of work does, or without `decay_norms` on
    matrices and kernels alone (Goyal et al. 2017, arXiv:1706.02677, spare BN)."""
    groups = [
        {"params": _parameters(network, vectors=False), "weight_decay": optim.weight_decay},
        {
            "params": _parameters(network, vectors=True),
            "weight_decay": optim.weight_decay if optim.decay_norms else 0.0,
        },
    ]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)


def _parameters(network: nn.Module, *, vectors: bool) -> list[nn.Parameter]:
    """Vectors are weights and biases of norms, gamma and beta, and other biases."""
    return [parameter for parameter in network.parameters() if (parameter.ndim <= 1) == vectors]


def learning_rate(step: int, *, base: float, gamma: float, milestones: Sequence[int], warmup_steps: int = 0) -> float:
    """The rate of the step that follows `step` finished ones: `base` times `gamma` for each milestone reached.

    The first `warmup_steps` steps have 1, 2, ... of so many parts of it (Goyal et al. 2017, arXiv:1706.02677, where the
    warm-up starts from the rate of one worker instead).
    """
    share = min(step + 1, warmup_steps) / warmup_steps if warmup_steps else 1.0
    return base * share * gamma ** sum(step >= milestone for milestone in milestones)
