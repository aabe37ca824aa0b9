"""Small networks built from config overrides, with random SGE and BN parameters; their feature maps and costs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import RunConfig, load_config
from fmfsd.model.build import build_network
from fmfsd.model.network import Network
from fmfsd.model.spatial_enhancement import SpatialScores


def make_config(*changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", changes)


def make_network(*changes: str) -> Network:
    """Build a network whose gammas, betas and batch statistics all differ from their initial values."""
    network = build_network(make_config(*changes))
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, SpatialScores):
            nn.init.normal_(module.gamma, generator=generator)
            nn.init.normal_(module.beta, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network


def maps_by_tap(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Return the trunk's feature map at each tap in a forward pass of the whole network."""
    maps = dict[str, Tensor]()

    def record(_backbone: nn.Module, arguments: Any) -> Any:
        backbone_input, visit = arguments
        return backbone_input, lambda tap, x: visit(tap, _record_map(maps, tap, x))

    with network.backbone.register_forward_pre_hook(record):
        network(images)
    return maps


def trunk_maps_by_tap(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Return the trunk's feature map at each tap when the trunk runs alone."""
    maps = dict[str, Tensor]()
    network.backbone(images, lambda tap, x: _record_map(maps, tap, x))
    return maps


def _record_map(maps: dict[str, Tensor], tap: str, x: Tensor) -> Tensor:
    maps[tap] = x.detach().clone()
    return x


def assert_all_train(network: nn.Module, batch: Tensor) -> None:
    """Assert that every parameter has a gradient after a forward and backward pass of `batch`."""
    outputs = network.train()(batch)
    loss = torch.stack([F.cross_entropy(logits, torch.arange(len(batch))) for logits in outputs.logits]).sum()
    (loss + sum(feature.norm() for feature in outputs.features)).backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module) -> float:
    """Return the multiply-accumulate operations for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(2, 3, 32, 32))
    return counter.get_total_flops() / 4
