"""The optimizer, and the learning rate as a function of the step."""

from collections.abc import Sequence

import torch
from torch import nn

from fmfsd.config import OptimConfig


def build_optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return SGD or AdamW. Weight decay applies to every parameter, as in the paper and its predecessors; without
    `decay_norms` only to matrices and kernels (Goyal et al. 2017, arXiv:1706.02677, exclude BN)."""
    groups = [
        {"params": _select_parameters(network, vectors=False), "weight_decay": optim.weight_decay},
        {
            "params": _select_parameters(network, vectors=True),
            "weight_decay": optim.weight_decay if optim.decay_norms else 0.0,
        },
    ]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)


def _select_parameters(network: nn.Module, *, vectors: bool) -> list[nn.Parameter]:
    """Return the 1-D parameters (weights and biases of norms, gamma and beta, other biases), or all others."""
    return [parameter for parameter in network.parameters() if (parameter.ndim <= 1) == vectors]


def learning_rate(step: int, *, base: float, gamma: float, milestones: Sequence[int], warmup_steps: int = 0) -> float:
    """Return the learning rate of the step that follows `step` finished steps: `base` times `gamma` per milestone.

    Linear warm-up: the first steps use 1/warmup_steps, 2/warmup_steps, ... of it (Goyal et al. 2017, arXiv:1706.02677,
    start the warm-up from the rate of one worker instead).
    """
    warmup_factor = min(step + 1, warmup_steps) / warmup_steps if warmup_steps else 1.0
    return base * warmup_factor * gamma ** sum(step >= milestone for milestone in milestones)
