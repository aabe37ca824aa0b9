"""Small networks by the words of a config, with weights that no two masks share, their maps, and what they cost."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import RunConfig, load_config
from fmfsd.model.build import build_network
from fmfsd.model.network import Network
from fmfsd.model.spatial_enhancement import SpatialScores


def config(*changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", changes)


def network_of(*changes: str) -> Network:
    """Every gamma and beta, and all batch statistics, away from their initial values."""
    made = build_network(config(*changes))
    generator = torch.Generator().manual_seed(5)
    for module in made.modules():
        if isinstance(module, SpatialScores):
            nn.init.normal_(module.gamma, generator=generator)
            nn.init.normal_(module.beta, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return made


def maps_by_place(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Return what the trunk makes at each place in a pass of the whole network."""
    maps = dict[str, Tensor]()

    def record(_backbone: nn.Module, arguments: Any) -> Any:
        taken, visit = arguments
        return taken, lambda place, x: visit(place, _noted(maps, place, x))

    with network.backbone.register_forward_pre_hook(record):
        network(images)
    return maps


def plain_maps_by_place(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Return what the trunk makes at each place when it runs alone."""
    maps = dict[str, Tensor]()
    network.backbone(images, lambda place, x: _noted(maps, place, x))
    return maps


def _noted(maps: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
    maps[place] = x.detach().clone()
    return x


def assert_all_train(network: nn.Module, batch: Tensor) -> None:
    """Every parameter has a gradient after a pass of `batch`."""
    outputs = network.train()(batch)
    loss = torch.stack([F.cross_entropy(logits, torch.arange(len(batch))) for logits in outputs.logits]).sum()
    (loss + sum(feature.norm() for feature in outputs.features)).backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module) -> float:
    """Multiply-accumulates for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(2, 3, 32, 32))
    return counter.get_total_flops() / 4
