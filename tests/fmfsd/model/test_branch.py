"""Branches: the layers of each type, and every combination of taps."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmfsd.model.backbones import Backbone
from fmfsd.model.backbones.resnet import cifar_resnet
from fmfsd.model.branch import AttentionGate, build_branch_type
from fmfsd.model.build import FUSION_NETWORKS
from fmfsd.model.fusion import build_fusion
from fmfsd.model.network import BranchNetwork, FusionNetwork, Network
from fmfsd.model.spatial_enhancement import SpatialGate
from tests.helpers.networks import assert_all_train, make_network


def layers(module: nn.Module) -> list[str]:
    """Describe convolutions and gates, in order."""
    descriptions = []
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            depthwise = "dw " if each.groups > 1 else ""
            descriptions.append(
                f"{depthwise}{each.kernel_size[0]}x{each.kernel_size[1]} s{each.stride[0]} "
                f"{each.in_channels}->{each.out_channels}"
            )
        elif isinstance(each, AttentionGate | SpatialGate):
            descriptions.append("attention" if isinstance(each, AttentionGate) else "gate")
    return descriptions


def separable_layers(start: int, end: int) -> list[str]:
    return [
        f"dw 3x3 s2 {start}->{start}",
        f"1x1 s1 {start}->{start}",
        f"dw 3x3 s1 {start}->{start}",
        f"1x1 s1 {start}->{end}",
    ]


def test_a_bottleneck_branch_reduces_the_resolution_in_one_step() -> None:
    """Zhang et al. 2019: 1x1 to a quarter of the channels, one convolution with the whole stride, 1x1 back."""
    network = make_network("method=byot")
    assert [layers(branch) for branch in network.branches] == [
        ["1x1 s1 64->128", "8x8 s8 128->128", "1x1 s1 128->512"],
        ["1x1 s1 128->128", "4x4 s4 128->128", "1x1 s1 128->512"],
        ["1x1 s1 256->128", "2x2 s2 128->128", "1x1 s1 128->512"],
    ]


def test_an_attention_branch_has_a_mask_and_separable_convolutions_without_enhancement() -> None:
    """Zhang et al. 2022."""
    network = make_network("method=byot_attention")
    widths = (64, 128, 256, 512)
    for number, branch in enumerate(network.branches):
        steps = [layer for start, end in itertools.pairwise(widths[number:]) for layer in separable_layers(start, end)]
        assert layers(branch) == ["attention", *separable_layers(widths[number], widths[number]), *steps]


@pytest.mark.parametrize("size", [8, 7, 1])
def test_attention_masks_are_between_one_half_and_1(size: int) -> None:
    """A ReLU precedes the sigmoid, as in the authors' code."""
    gate = AttentionGate(16).double()
    x = torch.randn(2, 16, size, size, dtype=torch.float64)
    share = gate(x) / x
    assert share.min() >= 0.5
    assert share.max() < 1
    mask = F.interpolate(gate.mask(x), (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(share, 1 / (1 + torch.exp(-mask)))


def small_backbone() -> Backbone:
    """Return the smallest backbone with taps inside stages: three stages of two blocks."""
    return cifar_resnet(32, depth=14)


TAPS = [tap.name for tap in small_backbone().tap_points[:-1]]
PLACEMENTS = [chosen for size in range(1, 6) for chosen in itertools.combinations(TAPS, size)]


def build_with_taps(placement: tuple[str, ...], *, branch_type: str, fusion: str) -> Network:
    backbone, path = small_backbone(), build_branch_type(branch_type, groups=4)
    taps = [tap for tap in backbone.tap_points if tap.name in placement]
    if fusion == "none":
        return BranchNetwork(backbone, taps, path, num_classes=5, features=True)
    return FUSION_NETWORKS[fusion](
        backbone,
        taps,
        path,
        lambda count: build_fusion(count, sem="sge", masks="averaged", groups=4),
        num_classes=5,
        groups=4,
        features=True,
    )


@pytest.mark.parametrize(
    ("fusion", "branch_type"), [("trunk", "sepconv"), ("both", "attention"), ("none", "bottleneck")]
)
def test_every_placement_inside_stages_uses_every_parameter(fusion: str, branch_type: str) -> None:
    assert TAPS == ["stage1.block1", "stage1", "stage2.block1", "stage2", "stage3.block1"]
    assert len(PLACEMENTS) == 31
    for placement in PLACEMENTS:
        network = build_with_taps(placement, branch_type=branch_type, fusion=fusion)
        assert_all_train(network, torch.randn(4, 3, 16, 16))
        num_branches = len(placement) - (fusion != "none")
        assert len(network.projections) == num_branches
        assert network.head_names[:num_branches] == tuple(f"branch{number}" for number in range(1, num_branches + 1))


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
def test_maps_are_fused_with_the_shape_of_the_deepest_tap(placement: tuple[str, ...]) -> None:
    shapes: dict[str, torch.Size] = {}
    network = build_with_taps(placement, branch_type="sepconv", fusion="trunk")
    assert isinstance(network, FusionNetwork)
    for tap, block in zip(network.backbone.tap_points, network.backbone.blocks(), strict=True):
        block.register_forward_hook(lambda _m, _i, out, name=tap.name: shapes.update({name: out.shape}))
    fused: list[list[torch.Size]] = []
    network.fusion.register_forward_hook(lambda _m, i, out: fused.append([*(each.shape for each in i[0]), out.shape]))
    network.eval()(torch.randn(2, 3, 16, 16))
    assert fused == [[shapes[placement[-1]]] * (len(placement) + 1)]


def test_a_single_branch_has_only_the_fused_head() -> None:
    """For n = 1 the branch has neither its own head nor a feature term; the fusion is a second gate."""
    network = make_network("model.backbone=resnet8", "model.branches=[stage2]").train()
    outputs = network(torch.randn(3, 3, 32, 32))
    assert network.head_names == ("fused", "deepest")
    assert (len(outputs.logits), outputs.features) == (2, [])
    assert not [name for name, _ in network.named_parameters() if name.startswith(("branches", "heads", "projections"))]
