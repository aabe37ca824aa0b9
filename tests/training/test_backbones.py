"""Every backbone: all layers are used with every method and image size, and its size is the published one."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import RunConfig, load_config
from fmfsd.config.names import BACKBONES as KNOWN
from fmfsd.config.names import get_tap_channels
from fmfsd.model.backbones import BACKBONES, Backbone
from fmfsd.model.build import build_network, choose_sem_groups
from fmfsd.model.network import Network
from fmfsd.model.prune import prune
from fmfsd.tap_names import is_stage

META = torch.device("meta")
METHODS = ("plain", "byot", "fmfsd", "fmfsd_side")
SLOW = ("resnet50", "resnet101", "resnet152", "wrn28_10", "resnext50")
"""More than 20 M parameters, with the same blocks as smaller backbones: trained with fake tensors only."""


def config(backbone: str, method: str = "plain", size: int = 32) -> RunConfig:
    loaded = load_config("cifar100-resnet18", [f"method={method}", f"model.backbone={backbone}"])
    return loaded.model_copy(update={"data": loaded.data.model_copy(update={"size": size})})


def build_on_meta_device(run_config: RunConfig) -> Network:
    with META:
        return build_network(run_config)


MAP_SIDES = {
    **dict.fromkeys(BACKBONES, ((32, 16, 8, 4), (56, 28, 14, 7))),
    **{name: ((32, 16, 8), (56, 28, 14)) for name, stages in KNOWN.items() if len(stages) == 3},
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), ((32, 16, 8, 4, 2), (224, 112, 56, 28, 14))),
    "squeezenet": ((32, 16, 8, 8), (56, 28, 14, 14)),
}
"""Sides of each stage's maps for images of 32 and of 224 pixels. Stems (VGG has none) halve images of 64 pixels."""


def expected_shapes(backbone: str, size: int) -> dict[str, tuple[int, ...]]:
    small, large = MAP_SIDES[backbone]
    factor = 2 if size == 64 and backbone.startswith("vgg") else 1
    sides = large if size == 224 else tuple(factor * side for side in small)
    stages = {f"stage{number}": side for number, side in enumerate(sides, 1)}
    return {tap: (count, *2 * [stages[tap.split(".")[0]]]) for tap, count in get_tap_channels(backbone).items()}


def record_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return a dictionary that the next forward pass fills with the shape of the map at each tap."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(_backbone: nn.Module, arguments: Any) -> Any:
        backbone_input, visit = arguments

        def record_and_visit(tap: str, x: Tensor) -> Tensor:
            shapes[tap] = tuple(x.shape[1:])
            return visit(tap, x)

        return backbone_input, record_and_visit

    network.backbone.register_forward_pre_hook(record)
    return shapes


def compute_loss(network: Network, images: Tensor) -> Tensor:
    outputs = network.train()(images)
    loss = sum((F.cross_entropy(logits, torch.tensor([0, 1])) for logits in outputs.logits), torch.zeros(()))
    for feature in outputs.features:
        loss = loss + (feature - outputs.deepest_feature.detach()).norm()
    return loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_every_parameter_gets_a_gradient(backbone: str, method: str) -> None:
    with FakeTensorMode() if backbone in SLOW else nullcontext():
        network = build_network(config(backbone, method))
        shapes = record_shapes(network)
        compute_loss(network, torch.randn(2, 3, 32, 32)).backward()
    assert shapes == expected_shapes(backbone, 32)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    if backbone not in SLOW:
        assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize(
    "backbone", ["resnet8", "resnet50", "wrn16_8", "vgg11", "mobilenetv2", "mobilenetv3_large", "squeezenet"]
)
def test_larger_images_use_another_stem(backbone: str, size: int) -> None:
    with FakeTensorMode(), torch.no_grad():
        network = build_network(config(backbone, "fmfsd", size))
        shapes = record_shapes(network)
        network(torch.empty(2, 3, size, size))
    assert shapes == expected_shapes(backbone, size)


def test_the_config_lists_every_backbones_taps() -> None:
    with META:
        channels = {name: {tap.name: tap.channels for tap in make(32).tap_points} for name, make in BACKBONES.items()}
    assert channels == {name: get_tap_channels(name) for name in KNOWN}


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_groups_are_the_largest_common_divisor_up_to_32(backbone: str) -> None:
    small = {3: 16, 4: 32, 5: 32}[len(KNOWN[backbone])]
    expected = {"mobilenetv2": 8, "mobilenetv3_large": 8, "wrn16_8": 32, "wrn28_10": 32}.get(backbone, small)
    stages = [channels for tap, channels in get_tap_channels(backbone).items() if is_stage(tap)]
    assert choose_sem_groups("auto", stages) == expected


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, size: int) -> int:
    """Return the multiply-adds for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, size, size, device=META))
    return counter.get_total_flops() // 2


TORCHVISION = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50": "resnext50_32x4d",
    "vgg11": "vgg11_bn",
    "vgg13": "vgg13_bn",
    "vgg16": "vgg16_bn",
    "vgg19": "vgg19_bn",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3_large": "mobilenet_v3_large",
    "squeezenet": "squeezenet1_1",
}


@pytest.mark.parametrize(("backbone", "name"), TORCHVISION.items())
def test_at_224_pixels_backbones_have_torchvisions_published_size(backbone: str, name: str) -> None:
    """Exact parameters, and multiply-adds to the published three decimals of a billion, both without classifiers.

    torchvision's SqueezeNet has no padding: its maps are those of ours for images of 220 pixels.
    """
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
    with META:
        backbone_only: Backbone = BACKBONES[backbone](224)
        reference = torchvision.models.get_model(name)
    classifier = reference.fc if hasattr(reference, "fc") else reference.classifier
    assert count_parameters(backbone_only) == published["num_params"] - count_parameters(classifier)
    weights = sum(weight.numel() for weight in classifier.parameters() if weight.dim() > 1)
    is_squeezenet = backbone == "squeezenet"
    expected = published["_ops"] * 1e9 - weights * (13 * 13 if is_squeezenet else 1)
    assert count_macs(backbone_only, 220 if is_squeezenet else 224) == pytest.approx(expected, abs=1.1e6)


def build_for_cifar10(backbone: str) -> Network:
    return build_on_meta_device(load_config("cifar10-resnet18", ["method=plain", f"model.backbone={backbone}"]))


@pytest.mark.parametrize(("depth", "published"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_small_resnets_have_the_published_size(depth: int, published: float) -> None:
    """Millions of parameters for CIFAR-10, He et al. 2015 (arXiv:1512.03385), table 6.

    Their shortcuts (option A) have no parameters, ours are two 1x1 convolutions with BN.
    """
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    millions = (count_parameters(build_for_cifar10(f"resnet{depth}")) - shortcuts) / 1e6
    assert millions == pytest.approx(published, abs=0.05 if depth == 110 else 0.005)


@pytest.mark.parametrize(("backbone", "count"), [("resnet8", 83_892), ("resnet20", 278_324)])
def test_small_cifar_resnets_have_the_published_size(backbone: str, count: int) -> None:
    """CIFAR-100, 1x1 shortcuts: 0.08 M and 0.28 M (Tian et al. 2020, arXiv:1910.10699, appendix)."""
    assert count_parameters(build_on_meta_device(config(backbone))) == count


@pytest.mark.parametrize(("backbone", "millions"), [("wrn16_8", 11.0), ("wrn28_10", 36.5)])
def test_wide_resnets_have_the_published_size(backbone: str, millions: float) -> None:
    """For CIFAR-10, Zagoruyko & Komodakis 2016 (arXiv:1605.07146), tables 4 and 5."""
    assert count_parameters(build_for_cifar10(backbone)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("backbone", "millions"), [("vgg16", 313), ("resnet56", 125), ("resnet110", 253)])
def test_multiply_adds_at_32_pixels_are_the_published_ones(backbone: str, millions: float) -> None:
    """Li et al. 2017 (arXiv:1608.08710), table 1.

    Their ResNets have no convolutions in shortcuts, and their VGG has one more linear layer.
    """
    shortcuts = 0 if backbone == "vgg16" else 2 * 32 * 64 * 64
    hidden = 512 * 512 if backbone == "vgg16" else 0
    assert (count_macs(build_for_cifar10(backbone), 32) - shortcuts + hidden) / 1e6 == pytest.approx(millions, abs=0.7)


def test_multiply_adds_of_a_wide_resnet_are_those_computed_by_hand() -> None:
    """WRN-28-10, table 1 of its paper: a 3x3 stem, three stages of four blocks of two 3x3 convolutions, and a 1x1
    shortcut in each stage.
    """
    total, before = 9 * 3 * 16 * 32**2 + 640 * 10, 16
    for width, side in ((160, 32), (320, 16), (640, 8)):
        total += (9 * before * width + 7 * 9 * width * width + before * width) * side**2
        before = width
    assert count_macs(build_for_cifar10("wrn28_10"), 32) == total


@pytest.mark.parametrize(
    "backbone", ["resnext50", "wrn16_8", "vgg11", "mobilenetv2", "mobilenetv3_large", "squeezenet"]
)
def test_pruning_to_the_deepest_head_removes_the_branches(backbone: str) -> None:
    """The logits stay bit for bit the same (identity 12); one backbone of each family."""
    network = build_network(config(backbone, "fmfsd")).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pruned = prune(network)
        assert torch.equal(pruned(images), network(images).logits[-1])
    assert count_parameters(pruned) < count_parameters(network)
