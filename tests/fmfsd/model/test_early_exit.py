"""What is served: one head's smallest network, and early exits."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.model.backbones import Backbone
from fmfsd.model.backbones.timm import MapsBackbone
from fmfsd.model.branch import branch_form
from fmfsd.model.early_exit import EarlyExit, early_heads
from fmfsd.model.network import BranchNetwork, Network, ensemble
from fmfsd.model.prune import prune
from tests.helpers.networks import macs, network_of, parameters

SMALL = "model.backbone=resnet8"
FUSIONS = {
    "trunk": ("branch1", "fused", "deepest"),
    "side": ("branch1", "fused", "deepest"),
    "both": ("branch1", "side", "fused", "deepest"),
    "none": ("branch1", "branch2", "deepest"),
}
"""And the heads of a network with two taps."""
NEVER = 2.0


def of_fusion(fusion: str, *changes: str) -> Network:
    method = ("method=byot",) if fusion == "none" else (f"model.fusion={fusion}",)
    return network_of(SMALL, *method, *changes)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits_of(network: Network, head: str, batch: Tensor) -> Tensor:
    logits = network.eval()(batch).logits
    return ensemble(logits) if head == "ensemble" else logits[network.head_names.index(head)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_pruned_head_is_the_networks_bit_for_bit(fusion: str) -> None:
    """Identity 12, of every head."""
    network = of_fusion(fusion)
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
def test_every_switch_can_be_pruned(changes: tuple[str, ...]) -> None:
    """Identity 12."""
    network = of_fusion("both", *changes)
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
def test_a_pruned_network_has_what_its_head_needs_and_nothing_else(fusion: str, head: str) -> None:
    network = network_of(SMALL, "method=plain") if fusion == "plain" else of_fusion(fusion)
    prefixes = tuple(f"{part}." for part in NEEDED[fusion][head])
    needed = {name for name, _ in network.named_parameters() if name.startswith(prefixes)}
    found = {name.removeprefix("network."): each for name, each in prune(network, head).named_parameters()}
    assert found.keys() == needed
    assert sum(each.numel() for each in found.values()) == sum(
        each.numel() for name, each in network.named_parameters() if name in needed
    )


@pytest.mark.parametrize("method", ["fmfsd_side", "byot"])
def test_beside_the_trunk_the_deepest_head_costs_nothing_more(method: str) -> None:
    """x1.000 parameters and multiply-accumulates."""
    plain = network_of("method=plain").eval()
    pruned = prune(network_of(f"method={method}"))
    assert (parameters(pruned), macs(pruned)) == (parameters(plain), macs(plain))


def test_in_the_trunk_form_the_deepest_head_alone_costs_the_published_share() -> None:
    """FMFSD inference, deepest head, on ResNet-18: x1.011 parameters, x1.018 multiply-accumulates."""
    pruned, plain = prune(network_of()), network_of("method=plain").eval()
    assert round(parameters(pruned) / parameters(plain), 3) == 1.011
    assert round(macs(pruned) / macs(plain), 3) == 1.018


def test_pruning_leaves_the_network_alone() -> None:
    network = of_fusion("trunk").train()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    pruned = prune(network)
    assert network.training
    nn.init.zeros_(pruned.get_parameter("network.deepest_head.classifier.weight"))
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())


def test_a_head_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="unknown head 'branch2': choose one of branch1, fused, deepest, ensemble"):
        prune(of_fusion("trunk"), "branch2")


def confidences(network: Network, batch: Tensor) -> Tensor:
    """(B, early heads)."""
    logits = network.eval()(batch).logits[: len(early_heads(network))]
    return torch.stack([each.double().softmax(dim=1).amax(dim=1) for each in logits], dim=1)


def halving(network: Network, batch: Tensor) -> tuple[list[float], list[int]]:
    """Thresholds that half of the images reach at each head, and the first head whose threshold each image reaches."""
    found = confidences(network, batch)
    thresholds = found.quantile(0.5, dim=0)
    exits = [next((head for head, sure in enumerate(each) if sure), len(each)) for each in found >= thresholds]
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
def test_each_image_has_the_logits_of_the_first_head_that_is_sure(fusion: str, changes: tuple[str, ...]) -> None:
    """To rounding: the sums of a smaller batch may run in another order."""
    network, batch = of_fusion(fusion, *changes).double(), images(24).double()
    thresholds, exits = halving(network, batch)
    found = EarlyExit(network, thresholds)(batch)
    assert found.heads.tolist() == exits
    logits = network(batch).logits
    heads = [[*logits[: len(thresholds)], logits[-1]][number] for number in exits]
    torch.testing.assert_close(found.logits, torch.stack([head[place] for place, head in enumerate(heads)]))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_images_that_leave_together_have_the_networks_logits_bit_for_bit(fusion: str) -> None:
    network = of_fusion(fusion)
    early = early_heads(network)
    for number, head in enumerate((*early, "deepest")):
        thresholds = [NEVER if before < number else 0.0 for before in range(len(early))]
        found = EarlyExit(network, thresholds)(images())
        assert torch.equal(found.logits, logits_of(network, head, images())), head
        assert found.heads.tolist() == [number] * 4


def test_early_exits_cost_the_published_shares() -> None:
    """Of the plain ResNet-18: 0.293 and 0.546 where all leave early, 1.030 where all are asked and stay."""
    network, plain = network_of(), macs(network_of("method=plain").eval())
    forced = [(0.0, 0.0), (NEVER, 0.0), (NEVER, NEVER)]
    assert [round(macs(EarlyExit(network, each)) / plain, 3) for each in forced] == [0.293, 0.546, 1.030]


def test_beside_the_trunk_images_that_stay_are_not_fused() -> None:
    model = EarlyExit(of_fusion("side"), [NEVER])
    for name, module in model.network.named_modules():
        if name.startswith(("gates.1", "alignments.1", "fus", "deep_fusion")):
            module.register_forward_pre_hook(never)
    assert model(images()).heads.tolist() == [1] * 4


def test_what_has_left_is_computed_no_further() -> None:
    """A batch costs what its images cost one by one."""
    network, batch = of_fusion("none"), images(9)
    thresholds, exits = halving(network, batch)
    alone = [macs(EarlyExit(network, each)) for each in ((0.0, 0.0), (NEVER, 0.0), (NEVER, NEVER))]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        EarlyExit(network, thresholds)(batch)
    assert counter.get_total_flops() / 2 == sum(alone[number] for number in exits)


def test_where_nothing_remains_the_rest_does_not_run() -> None:
    model = EarlyExit(of_fusion("trunk"), [0.0])
    assert isinstance(model.network.backbone, Backbone)
    model.network.backbone.stages[1].register_forward_pre_hook(never)
    assert model(images()).heads.tolist() == [0] * 4


def never(*_: object) -> None:
    raise AssertionError("ran")


def test_a_plain_network_has_one_exit() -> None:
    network = network_of(SMALL, "method=plain")
    found = EarlyExit(network, ())(images())
    assert torch.equal(found.logits, logits_of(network, "deepest", images()))
    assert found.heads.tolist() == [0] * 4


class AllMaps(nn.Module):
    """A model as timm has them, whose maps come at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3 if not depth else 8, 8, 3, 2, padding=1) for depth in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


def test_a_backbone_that_gives_all_its_maps_at_its_end_has_one_exit() -> None:
    backbone = MapsBackbone(AllMaps(), [[8]] * 3, [2] * 3, channels_last=False)
    form = branch_form("bottleneck", groups=4)
    network = BranchNetwork(backbone, backbone.places[:2], form, num_classes=5, features=False)
    assert (network.head_names, early_heads(network)) == (("branch1", "branch2", "deepest"), ())
    assert torch.equal(EarlyExit(network, ())(images()).logits, logits_of(network, "deepest", images()))


def test_every_early_head_needs_a_threshold() -> None:
    with pytest.raises(ValueError, match=r"2 thresholds for 1 early heads \(branch1\)"):
        EarlyExit(of_fusion("trunk"), (0.5, 0.5))
