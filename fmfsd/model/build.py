"""Builds the network of a config: the only module here that reads configs."""

import math
from collections.abc import Collection
from functools import partial

import torch
from torch import nn

from fmfsd.config import ModelConfig, RunConfig
from fmfsd.config.names import TIMM
from fmfsd.errors import ConfigError
from fmfsd.model.backbones import BACKBONES, Backbone
from fmfsd.model.backbones.backbone import TapPoint, Trunk
from fmfsd.model.backbones.timm import timm_backbone
from fmfsd.model.branch import build_branch_type
from fmfsd.model.fusion import build_fusion
from fmfsd.model.network import BranchNetwork, DoubleFusionNetwork, FusionNetwork, Network, SideFusionNetwork
from fmfsd.tap_names import is_stage

FUSION_NETWORKS = {"trunk": FusionNetwork, "side": SideFusionNetwork, "both": DoubleFusionNetwork}
MAX_GROUPS = 32


def build_network(config: RunConfig) -> Network:
    """Return the network that `config` describes, with initial weights that depend only on the seed.

    It has no lazily created layers, and only layers that a training step uses. Raises ConfigError for taps or a fusion
    that the backbone does not support.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = _backbone(config.model, config.data.size)
        if config.train.recompute == "all":
            _require_blocks(backbone, config.model).recomputes = True
        network = _add_branches(backbone, config)
        network.recomputes = _recomputes_branches(config)
        initialise_weights(*(child for child in network.children() if child is not backbone))
    return network


def _backbone(model: ModelConfig, size: int) -> Trunk:
    """Return the backbone with its initial weights; timm's models initialise their own."""
    if model.backbone.startswith(TIMM):
        return timm_backbone(model.backbone.removeprefix(TIMM), size, pretrained=model.pretrained)
    backbone = BACKBONES[model.backbone](size)
    initialise_weights(backbone)
    return backbone


def _add_branches(backbone: Trunk, config: RunConfig) -> Network:
    model, taps = config.model, select_taps(backbone, config.model)
    groups = choose_sem_groups(model.sem_groups, _channels(backbone, taps))
    _require_fusion(backbone, model)
    branch_type = build_branch_type(model.branch, groups=groups)
    classes, features = config.data.num_classes, config.distill.has_feature_loss
    if model.fusion == "none":
        return BranchNetwork(backbone, taps, branch_type, num_classes=classes, features=features)
    fusion, network_class = (
        partial(build_fusion, sem=model.sem, masks=model.masks, groups=groups),
        FUSION_NETWORKS[model.fusion],
    )
    return network_class(backbone, taps, branch_type, fusion, num_classes=classes, groups=groups, features=features)


def _recomputes_branches(config: RunConfig) -> bool:
    """Return whether branches recompute activations; `auto`: not at ZeRO stage 3, which frees weights after forward."""
    if config.train.recompute == "auto":
        return config.engine.name == "torch" or config.engine.zero_stage < 3
    return config.train.recompute != "none"


def _require_blocks(backbone: Trunk, model: ModelConfig) -> Backbone:
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"train.recompute: {model.backbone} is not a sequence of blocks to recompute: set branches or none"
        )
    return backbone


def _require_fusion(backbone: Trunk, model: ModelConfig) -> None:
    if model.fusion in ("trunk", "both") and not isinstance(backbone, Backbone):
        raise ConfigError(
            f"model.fusion: {model.fusion} feeds the fused map into the trunk, but {model.backbone} returns its maps "
            "only at the end of its forward pass: set method fmfsd_side"
        )


def select_taps(backbone: Trunk, model: ModelConfig) -> list[TapPoint]:
    """Return the taps of the branches, shallow to deep. Raises ConfigError for taps that the backbone does not have."""
    candidates = backbone.tap_points[:-1]
    if model.branches == "auto":
        return [point for point in candidates if is_stage(point.name)]
    names = [point.name for point in candidates]
    if unknown := [tap for tap in model.branches if tap not in names]:
        raise ConfigError(f"model.branches: {model.backbone} has no tap {unknown[0]!r}; it has {', '.join(names)}")
    return [point for point in candidates if point.name in model.branches]


def _channels(backbone: Trunk, taps: Collection[TapPoint]) -> list[int]:
    """Return the channels of all maps that may be enhanced."""
    return [point.channels for point in backbone.tap_points if is_stage(point.name) or point in taps]


def choose_sem_groups(setting: int | str, channels: Collection[int]) -> int:
    """Return the number of groups of spatial enhancement; auto: the largest common divisor of all channels, at most 32.

    Raises ConfigError for groups that do not divide the channels.
    """
    if isinstance(setting, int):
        if uneven := next((count for count in channels if count % setting), None):
            raise ConfigError(f"model.sem_groups: {setting} groups do not divide a map's {uneven} channels; try auto")
        return setting
    common = math.gcd(*channels)
    return next(groups for groups in range(min(MAX_GROUPS, common), 0, -1) if common % groups == 0)


def initialise_weights(*parts: nn.Module) -> None:
    """Initialise convolutions with Kaiming normal, fan-out, ReLU (arXiv:1502.01852).

    Batch norm and linear layers have PyTorch's default initialisation.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
