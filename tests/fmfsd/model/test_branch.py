"""Branches: their layers in each form, and every place that they can leave from."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmfsd.model.backbones import Backbone
from fmfsd.model.backbones.resnet import cifar_resnet
from fmfsd.model.branch import AttentionGate, branch_form
from fmfsd.model.build import FUSIONS
from fmfsd.model.fusion import fusion_of
from fmfsd.model.network import BranchNetwork, FusionNetwork, Network
from fmfsd.model.spatial_enhancement import SpatialGate
from tests.helpers.networks import assert_all_train, network_of


def layers(module: nn.Module) -> list[str]:
    """Convolutions and gates, in order."""
    found = []
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            grouped = "dw " if each.groups > 1 else ""
            found.append(
                f"{grouped}{each.kernel_size[0]}x{each.kernel_size[1]} s{each.stride[0]} "
                f"{each.in_channels}->{each.out_channels}"
            )
        elif isinstance(each, AttentionGate | SpatialGate):
            found.append("attention" if isinstance(each, AttentionGate) else "gate")
    return found


def separable(start: int, end: int) -> list[str]:
    return [
        f"dw 3x3 s2 {start}->{start}",
        f"1x1 s1 {start}->{start}",
        f"dw 3x3 s1 {start}->{start}",
        f"1x1 s1 {start}->{end}",
    ]


def test_a_bottleneck_branch_goes_the_whole_way_at_once() -> None:
    """Zhang et al. 2019: to a quarter of the channels, one kernel and stride of the whole reduction, and back."""
    network = network_of("method=byot")
    assert [layers(branch) for branch in network.branches] == [
        ["1x1 s1 64->128", "8x8 s8 128->128", "1x1 s1 128->512"],
        ["1x1 s1 128->128", "4x4 s4 128->128", "1x1 s1 128->512"],
        ["1x1 s1 256->128", "2x2 s2 128->128", "1x1 s1 128->512"],
    ]


def test_an_attention_branch_is_a_mask_and_separable_steps_without_enhancement() -> None:
    """Zhang et al. 2022."""
    network = network_of("method=byot_attention")
    widths = (64, 128, 256, 512)
    for number, branch in enumerate(network.branches):
        steps = [layer for start, end in itertools.pairwise(widths[number:]) for layer in separable(start, end)]
        assert layers(branch) == ["attention", *separable(widths[number], widths[number]), *steps]


@pytest.mark.parametrize("size", [8, 7, 1])
def test_an_attention_mask_lies_between_a_half_and_1(size: int) -> None:
    """A ReLU precedes the sigmoid, as in the authors' code."""
    gate = AttentionGate(16).double()
    x = torch.randn(2, 16, size, size, dtype=torch.float64)
    share = gate(x) / x
    assert share.min() >= 0.5
    assert share.max() < 1
    mask = F.interpolate(gate.mask(x), (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(share, 1 / (1 + torch.exp(-mask)))


def of_blocks() -> Backbone:
    """Three stages of two blocks: the smallest backbone with places inside stages."""
    return cifar_resnet(32, depth=14)


PLACES = [place.name for place in of_blocks().places[:-1]]
PLACEMENTS = [chosen for size in range(1, 6) for chosen in itertools.combinations(PLACES, size)]


def placed(placement: tuple[str, ...], *, form: str, fusion: str) -> Network:
    backbone, path = of_blocks(), branch_form(form, groups=4)
    taps = [place for place in backbone.places if place.name in placement]
    if fusion == "none":
        return BranchNetwork(backbone, taps, path, num_classes=5, features=True)
    return FUSIONS[fusion](
        backbone,
        taps,
        path,
        lambda count: fusion_of(count, sem="sge", masks="averaged", groups=4),
        num_classes=5,
        groups=4,
        features=True,
    )


@pytest.mark.parametrize(("fusion", "form"), [("trunk", "sepconv"), ("both", "attention"), ("none", "bottleneck")])
def test_every_placement_inside_stages_uses_every_parameter(fusion: str, form: str) -> None:
    assert PLACES == ["stage1.block1", "stage1", "stage2.block1", "stage2", "stage3.block1"]
    assert len(PLACEMENTS) == 31
    for placement in PLACEMENTS:
        network = placed(placement, form=form, fusion=fusion)
        assert_all_train(network, torch.randn(4, 3, 16, 16))
        own = len(placement) - (fusion != "none")
        assert len(network.projections) == own
        assert network.head_names[:own] == tuple(f"branch{number}" for number in range(1, own + 1))


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
def test_maps_are_fused_in_the_shape_of_the_deepest_tap(placement: tuple[str, ...]) -> None:
    shapes: dict[str, torch.Size] = {}
    network = placed(placement, form="sepconv", fusion="trunk")
    assert isinstance(network, FusionNetwork)
    for place, block in zip(network.backbone.places, network.backbone.blocks(), strict=True):
        block.register_forward_hook(lambda _m, _i, out, name=place.name: shapes.update({name: out.shape}))
    fused: list[list[torch.Size]] = []
    network.fusion.register_forward_hook(lambda _m, i, out: fused.append([*(each.shape for each in i[0]), out.shape]))
    network.eval()(torch.randn(2, 3, 16, 16))
    assert fused == [[shapes[placement[-1]]] * (len(placement) + 1)]


def test_one_branch_is_the_fused_head_alone() -> None:
    """n = 1: no head of its own, no feature term; fusing is gating once more."""
    network = network_of("model.backbone=resnet8", "model.branches=[stage2]").train()
    outputs = network(torch.randn(3, 3, 32, 32))
    assert network.head_names == ("fused", "deepest")
    assert (len(outputs.logits), outputs.features) == (2, [])
    assert not [name for name, _ in network.named_parameters() if name.startswith(("branches", "heads", "projections"))]
