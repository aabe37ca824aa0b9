"""Inference networks: pruning to one head, and early exits."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.model.backbones import Backbone
from fmfsd.model.backbones.timm import MapsBackbone
from fmfsd.model.branch import build_branch_type
from fmfsd.model.early_exit import EarlyExit, early_head_names
from fmfsd.model.network import BranchNetwork, Network, average_logits
from fmfsd.model.prune import prune
from tests.helpers.networks import count_macs, count_parameters, make_network

SMALL = "model.backbone=resnet8"
FUSIONS = {
    "trunk": ("branch1", "fused", "deepest"),
    "side": ("branch1", "fused", "deepest"),
    "both": ("branch1", "side", "fused", "deepest"),
    "none": ("branch1", "branch2", "deepest"),
}
"""The heads of a network with two taps, by kind of fusion."""
NEVER = 2.0


def network_with_fusion(fusion: str, *changes: str) -> Network:
    method = ("method=byot",) if fusion == "none" else (f"model.fusion={fusion}",)
    return make_network(SMALL, *method, *changes)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits_of(network: Network, head: str, batch: Tensor) -> Tensor:
    logits = network.eval()(batch).logits
    return average_logits(logits) if head == "ensemble" else logits[network.head_names.index(head)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_pruned_network_has_the_logits_of_its_head_bit_for_bit(fusion: str) -> None:
    """Identity 12, for every head."""
    network = network_with_fusion(fusion)
    assert network.head_names == FUSIONS[fusion]
    for head in (*FUSIONS[fusion], "ensemble"):
        assert torch.equal(prune(network, head)(images()), logits_of(network, head, images())), head


@pytest.mark.parametrize(
    "changes",
    [
        ("model.sem=cbam",),
        ("model.sem=softmax", "model.masks=own"),
        ("model.sem=none",),
        ("model.masks=own",),
        ("model.branch=bottleneck",),
        ("model.branch=attention",),
        ("model.branches=[stage1]",),
        ("model.backbone=resnet20", "model.branches=[stage1.block1, stage2.block2, stage3.block1]"),
    ],
    ids="-".join,
)
def test_networks_with_every_option_can_be_pruned(changes: tuple[str, ...]) -> None:
    """Identity 12."""
    network = network_with_fusion("both", *changes)
    for head in network.head_names:
        assert torch.equal(prune(network, head)(images(2)), logits_of(network, head, images(2))), head


TRUNK = ("backbone.stem", "backbone.stages.0", "backbone.stages.1", "backbone.stages.2")
ALIGNED = ("gates", "alignments", "fusion")
FUSED = ("fused_branch", "deep_fusion", "fused_head")
BRANCH1 = ("backbone.stem", "backbone.stages.0", "branches.0", "heads.0")
NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "plain": {"deepest": (*TRUNK, "deepest_head")},
    "none": {
        "deepest": (*TRUNK, "deepest_head"),
        "branch1": BRANCH1,
        "branch2": ("backbone.stem", "backbone.stages.0", "backbone.stages.1", "branches.1", "heads.1"),
    },
    "side": {
        "deepest": (*TRUNK, "deepest_head"),
        "branch1": (*BRANCH1, "gates.0", "alignments.0"),
        "fused": (*TRUNK, *ALIGNED, *FUSED),
    },
    "trunk": {
        "deepest": (*TRUNK, *ALIGNED, "deepest_head"),
        "branch1": (*BRANCH1, "gates.0", "alignments.0"),
        "fused": (*TRUNK, *ALIGNED, *FUSED),
    },
    "both": {
        "deepest": (*TRUNK, *ALIGNED, "deepest_head"),
        "side": (*TRUNK[:3], *ALIGNED, "fused_branch", "side_heads"),
    },
}


@pytest.mark.parametrize(("fusion", "head"), [(fusion, head) for fusion, heads in NEEDED.items() for head in heads])
def test_a_pruned_network_has_only_the_layers_that_its_head_needs(fusion: str, head: str) -> None:
    network = make_network(SMALL, "method=plain") if fusion == "plain" else network_with_fusion(fusion)
    prefixes = tuple(f"{part}." for part in NEEDED[fusion][head])
    needed = {name for name, _ in network.named_parameters() if name.startswith(prefixes)}
    remaining = {name.removeprefix("network."): each for name, each in prune(network, head).named_parameters()}
    assert remaining.keys() == needed
    assert sum(each.numel() for each in remaining.values()) == sum(
        each.numel() for name, each in network.named_parameters() if name in needed
    )


@pytest.mark.parametrize("method", ["fmfsd_side", "byot"])
def test_with_fusion_next_to_the_trunk_the_deepest_head_costs_as_much_as_the_plain_network(method: str) -> None:
    """The factor of parameters and multiply-accumulates is 1.000."""
    plain = make_network("method=plain").eval()
    pruned = prune(make_network(f"method={method}"))
    assert (count_parameters(pruned), count_macs(pruned)) == (count_parameters(plain), count_macs(plain))


def test_with_fusion_in_the_trunk_the_deepest_head_costs_the_published_share() -> None:
    """Deepest head of FMFSD on ResNet-18: 1.011 times the parameters, 1.018 times the multiply-accumulates."""
    pruned, plain = prune(make_network()), make_network("method=plain").eval()
    assert round(count_parameters(pruned) / count_parameters(plain), 3) == 1.011
    assert round(count_macs(pruned) / count_macs(plain), 3) == 1.018


def test_pruning_does_not_change_the_network() -> None:
    network = network_with_fusion("trunk").train()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    pruned = prune(network)
    assert network.training
    nn.init.zeros_(pruned.get_parameter("network.deepest_head.classifier.weight"))
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())


def test_the_error_for_an_unknown_head_lists_the_heads() -> None:
    with pytest.raises(ValueError, match="unknown head 'branch2': choose one of branch1, fused, deepest, ensemble"):
        prune(network_with_fusion("trunk"), "branch2")


def confidences(network: Network, batch: Tensor) -> Tensor:
    """Return the largest probability per image and early head, shape (B, early heads)."""
    logits = network.eval()(batch).logits[: len(early_head_names(network))]
    return torch.stack([each.double().softmax(dim=1).amax(dim=1) for each in logits], dim=1)


def median_thresholds(network: Network, batch: Tensor) -> tuple[list[float], list[int]]:
    """Return thresholds that half of the images reach at each head, and the exit of each image."""
    confidence = confidences(network, batch)
    thresholds = confidence.quantile(0.5, dim=0)
    exits = [
        next((head for head, is_sure in enumerate(each) if is_sure), len(each)) for each in confidence >= thresholds
    ]
    assert len(set(exits)) == len(thresholds) + 1
    return thresholds.tolist(), exits


EXITS = [
    ("trunk", ()),
    ("side", ()),
    ("both", ()),
    ("none", ()),
    ("trunk", ("model.backbone=resnet20", "model.branches=[stage1.block2, stage1, stage2.block1, stage3.block1]")),
    ("none", ("model.backbone=resnet20", "model.branches=[stage1, stage2.block1, stage3.block1]")),
]


@pytest.mark.parametrize(("fusion", "changes"), EXITS)
def test_each_image_has_the_logits_of_the_first_head_above_its_threshold(fusion: str, changes: tuple[str, ...]) -> None:
    """Up to rounding: smaller batches may be summed in another order."""
    network, batch = network_with_fusion(fusion, *changes).double(), images(24).double()
    thresholds, exits = median_thresholds(network, batch)
    result = EarlyExit(network, thresholds)(batch)
    assert result.heads.tolist() == exits
    logits = network(batch).logits
    heads = [[*logits[: len(thresholds)], logits[-1]][number] for number in exits]
    torch.testing.assert_close(result.logits, torch.stack([head[index] for index, head in enumerate(heads)]))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_if_all_images_exit_together_their_logits_are_bit_for_bit_those_of_the_network(fusion: str) -> None:
    network = network_with_fusion(fusion)
    early = early_head_names(network)
    for number, head in enumerate((*early, "deepest")):
        thresholds = [NEVER if before < number else 0.0 for before in range(len(early))]
        result = EarlyExit(network, thresholds)(images())
        assert torch.equal(result.logits, logits_of(network, head, images())), head
        assert result.heads.tolist() == [number] * 4


def test_early_exits_cost_the_published_shares() -> None:
    """Relative to plain ResNet-18: 0.293 and 0.546 if all images exit early, 1.030 if none does."""
    network, plain = make_network(), count_macs(make_network("method=plain").eval())
    threshold_pairs = [(0.0, 0.0), (NEVER, 0.0), (NEVER, NEVER)]
    assert [round(count_macs(EarlyExit(network, each)) / plain, 3) for each in threshold_pairs] == [0.293, 0.546, 1.030]


def test_with_fusion_next_to_the_trunk_maps_of_remaining_images_are_not_fused() -> None:
    model = EarlyExit(network_with_fusion("side"), [NEVER])
    for name, module in model.network.named_modules():
        if name.startswith(("gates.1", "alignments.1", "fus", "deep_fusion")):
            module.register_forward_pre_hook(fail)
    assert model(images()).heads.tolist() == [1] * 4


def test_images_that_have_exited_cost_nothing_more() -> None:
    """The cost of a batch is the sum of the costs of its images."""
    network, batch = network_with_fusion("none"), images(9)
    thresholds, exits = median_thresholds(network, batch)
    alone = [count_macs(EarlyExit(network, each)) for each in ((0.0, 0.0), (NEVER, 0.0), (NEVER, NEVER))]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        EarlyExit(network, thresholds)(batch)
    assert counter.get_total_flops() / 2 == sum(alone[number] for number in exits)


def test_if_all_images_have_exited_the_rest_does_not_run() -> None:
    model = EarlyExit(network_with_fusion("trunk"), [0.0])
    assert isinstance(model.network.backbone, Backbone)
    model.network.backbone.stages[1].register_forward_pre_hook(fail)
    assert model(images()).heads.tolist() == [0] * 4


def fail(*_: object) -> None:
    raise AssertionError("ran")


def test_a_plain_network_has_one_exit() -> None:
    network = make_network(SMALL, "method=plain")
    result = EarlyExit(network, ())(images())
    assert torch.equal(result.logits, logits_of(network, "deepest", images()))
    assert result.heads.tolist() == [0] * 4


class AllMaps(nn.Module):
    """A model like timm's, which returns all maps at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3 if not depth else 8, 8, 3, 2, padding=1) for depth in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


def test_a_backbone_that_returns_all_maps_at_its_end_has_one_exit() -> None:
    backbone = MapsBackbone(AllMaps(), [[8]] * 3, [2] * 3, channels_last=False)
    path = build_branch_type("bottleneck", groups=4)
    network = BranchNetwork(backbone, backbone.tap_points[:2], path, num_classes=5, features=False)
    assert (network.head_names, early_head_names(network)) == (("branch1", "branch2", "deepest"), ())
    assert torch.equal(EarlyExit(network, ())(images()).logits, logits_of(network, "deepest", images()))


def test_every_early_head_needs_a_threshold() -> None:
    with pytest.raises(ValueError, match=r"2 thresholds for 1 early heads \(branch1\)"):
        EarlyExit(network_with_fusion("trunk"), (0.5, 0.5))
