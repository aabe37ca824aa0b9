"""Identity 14: up to the last tap, branches and fusion do not change the maps of the trunk, bit for bit."""

import pytest
import torch
from torch import Tensor

from fmfsd.model.backbones import BACKBONES
from fmfsd.model.network import BranchNetwork, Network
from tests.helpers.networks import make_network, maps_by_tap, trunk_maps_by_tap

RESNET8, RESNET20 = "model.backbone=resnet8", "model.backbone=resnet20"
SPLIT_MODELS = (
    *(f"test_{name}" for name in ("resnet", "convnext", "byobnet", "nfnet", "efficientnet", "mambaout")),
    *("efficientnet_b0", "mobilenetv3_small_050", "mobilenetv4_conv_small"),
    *("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "vit_medium_patch16_gap_256"),
)
"""timm's models that can be split at their taps."""
INSIDE_STAGES = "model.branches=[stage1.block1, stage2, stage3.block1]"


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def changed_taps(network: Network) -> list[str]:
    """Return the taps whose maps differ from those of the plain backbone with the same weights."""
    with_branches, plain = maps_by_tap(network.train(), images()), trunk_maps_by_tap(network, images())
    assert list(with_branches) == [tap.name for tap in network.backbone.tap_points]
    return [tap for tap in plain if not torch.equal(with_branches[tap], plain[tap])]


def taps_after_the_last_branch(network: Network) -> list[str]:
    taps = [tap.name for tap in network.backbone.tap_points]
    return taps[taps.index(network.taps[-1]) + 1 :]


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_the_fused_map_is_the_only_change_to_the_trunk(backbone: str) -> None:
    network = make_network(f"model.backbone={backbone}")
    assert changed_taps(network) == taps_after_the_last_branch(network)


@pytest.mark.parametrize(
    "changes",
    [
        *((f"model.backbone={backbone}", "model.fusion=both") for backbone in ("resnet8", "wrn16_8", "squeezenet")),
        *((RESNET20, INSIDE_STAGES, f"model.fusion={fusion}") for fusion in ("trunk", "both")),
        (RESNET8, "train.recompute=all"),
        (RESNET8, "model.sem=cbam", "model.branch=attention"),
        (RESNET8, "model.sem=softmax", "model.masks=own"),
        *((f"model.backbone=timm/{name}",) for name in SPLIT_MODELS),
        ("model.backbone=timm/test_resnet", "model.fusion=both"),
    ],
    ids="-".join,
)
def test_the_fused_map_is_the_only_change_with_every_option(changes: tuple[str, ...]) -> None:
    network = make_network(*changes)
    assert changed_taps(network) == taps_after_the_last_branch(network)


@pytest.mark.parametrize(
    "changes",
    [
        (RESNET20, INSIDE_STAGES, "model.fusion=side"),
        (RESNET20, INSIDE_STAGES, "method=byot"),
        ("model.backbone=mobilenetv2", "model.fusion=side"),
        (RESNET8, "method=byot_attention"),
        *(
            (f"model.backbone=timm/{name}", "model.fusion=side")
            for name in ("test_vit", "test_mambaout", SPLIT_MODELS[-2])
        ),
    ],
    ids="-".join,
)
def test_fusion_next_to_the_trunk_does_not_change_it(changes: tuple[str, ...]) -> None:
    network = make_network(*changes)
    assert isinstance(network, BranchNetwork) or not network.feeds_trunk
    assert changed_taps(network) == []
