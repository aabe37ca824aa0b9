"""From a config to a network: the one place where model code meets configs."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fmfsd.config import TrainConfig
from fmfsd.config.known import DATASETS, taps
from fmfsd.model.backbones import BACKBONES
from fmfsd.model.network import BranchNetwork, FusionNetwork

Network = BranchNetwork | FusionNetwork
MOST_GROUPS = 32


def build_network(config: TrainConfig) -> Network:
    """The network that `config` describes, with initial weights that depend on its seed alone.

    Every layer exists when it returns, and only layers that a training step uses.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = BACKBONES[config.model.backbone]()
        _initialise(backbone)
        known = taps(config.model.backbone)
        family = FusionNetwork if config.model.fusion == "trunk" else BranchNetwork
        network = family(
            backbone,
            [known.index(tap) for tap in config.branches],
            num_classes=DATASETS[config.data.name].num_classes,
            groups=sem_groups(config.model.sem_groups, backbone.channels),
            features=config.distill.beta > 0,
        )
        _initialise(*(child for child in network.children() if child is not backbone))
    return network


def sem_groups(asked: int | str, channels: Sequence[int]) -> int:
    """Groups of spatial enhancement; auto: the largest common divisor of all maps' channels, at most 32."""
    if isinstance(asked, int):
        return asked
    common = math.gcd(*channels)
    return next(groups for groups in range(min(MOST_GROUPS, common), 0, -1) if common % groups == 0)


def _initialise(*parts: nn.Module) -> None:
    """Convolutions by Kaiming normal, fan-out, ReLU (arXiv:1502.01852); BN and linear layers keep PyTorch's default."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
