"""The network of the method: its wiring, its placements, its beginning, and its cost."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmfsd.config.names import taps
from fmfsd.model.build import build_network
from fmfsd.model.fusion import Fusion
from fmfsd.model.network import FusionNetwork
from fmfsd.model.spatial_enhancement import SpatialGate
from fmfsd.tap_names import is_stage
from tests.helpers.networks import assert_all_train, config, macs, network_of, parameters


def test_memory_layout_changes_nothing_but_rounding() -> None:
    """Identity 7."""
    network = build_network(config("model.backbone=resnet8")).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = network(images).logits
    found = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last)).logits
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("backbone", "base", "without_features", "with_features"),
    [
        ("resnet18", (11.220, 555.5), (1.079, 1.036), (1.125, 1.037)),
        ("resnet34", (21.328, 1159.5), (1.041, 1.017), (1.066, 1.018)),
        ("resnet50", (23.705, 1298.0), (1.503, 1.236), (1.857, 1.242)),
    ],
)
def test_cost_is_the_published_one(
    backbone: str, base: tuple[float, float], without_features: tuple[float, float], with_features: tuple[float, float]
) -> None:
    """Millions of parameters and of multiply-accumulates of the backbone, and FMFSD's factors over it."""
    plain = build_network(config("method=plain", f"model.backbone={backbone}")).eval()
    assert (parameters(plain) / 1e6, macs(plain) / 1e6) == pytest.approx(base, abs=0.06)
    for beta, mode, expected in ((0.0, False, without_features), (0.03, True, with_features)):
        network = build_network(config(f"model.backbone={backbone}", f"distill.beta={beta}")).train(mode)
        factors = (parameters(network) / parameters(plain), macs(network) / macs(plain))
        assert tuple(round(factor, 3) for factor in factors) == expected


def every_placement(backbone: str) -> list[tuple[str, ...]]:
    known = [tap for tap in taps(backbone) if is_stage(tap)]
    return [chosen for size in range(1, len(known) + 1) for chosen in itertools.combinations(known, size)]


@pytest.mark.parametrize("method", ["fmfsd", "byot"])
@pytest.mark.parametrize("placement", every_placement("resnet18"), ids="-".join)
def test_every_placement_uses_every_parameter(method: str, placement: tuple[str, ...]) -> None:
    branches = f"model.branches=[{', '.join(placement)}]"
    network = build_network(config(f"method={method}", branches, "data.name=cifar10"))
    assert_all_train(network, torch.randn(4, 3, 32, 32))
    own = len(placement) - (method == "fmfsd")
    names = [f"branch{number}" for number in range(1, own + 1)] + ["fused"] * (method == "fmfsd") + ["deepest"]
    assert list(network.head_names) == names
    outputs = network(torch.zeros(2, 3, 32, 32))
    assert [tuple(logits.shape) for logits in outputs.logits] == [(2, 10)] * len(names)
    assert [tuple(feature.shape) for feature in outputs.features] == [(2, 512)] * own
    assert network.eval()(torch.zeros(2, 3, 32, 32)).features == []


def test_placement_order_does_not_matter() -> None:
    orders = ("[stage3, stage1]", "[stage1, stage3]")
    one, other = (build_network(config(f"model.branches={order}")).state_dict() for order in orders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build_network(config("seed=3", "model.backbone=resnet8")).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = build_network(config("seed=3", "model.backbone=resnet8")).state_dict()
    other = build_network(config("seed=4", "model.backbone=resnet8")).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["backbone.stem.0.weight"], other["backbone.stem.0.weight"])


def test_all_methods_start_from_the_same_trunk() -> None:
    trunks = [
        build_network(config(f"method={method}", "model.backbone=resnet8")).backbone
        for method in ("plain", "byot", "fmfsd")
    ]
    first, *others = (trunk.state_dict() for trunk in trunks)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_convolutions_start_by_kaiming_normal_fan_out() -> None:
    weight = build_network(config()).backbone.state_dict()["stages.3.1.conv2.weight"]
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def fused_by_hand(fusion: Fusion, maps: list[Tensor]) -> Tensor:
    """Every mask averaged, the average applied to every map, the results averaged."""
    mask = sum(enhance(each) for enhance, each in zip(fusion.enhancements, maps, strict=True)) / len(maps)
    assert isinstance(mask, Tensor)
    wide = mask.repeat_interleave(maps[0].shape[1] // mask.shape[1], dim=1)
    fused = sum(wide * each for each in maps) / len(maps)
    assert isinstance(fused, Tensor)
    return fused


def test_the_network_is_the_one_of_the_method() -> None:
    """Section 1 line by line, in its names, on ResNet-18 with branches after stages 1, 2 and 3."""
    network = network_of().double().train()
    assert isinstance(network, FusionNetwork)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    found = network(images)
    s1, s2, s3, s4 = network.backbone.stages
    assert isinstance(network.fusion, Fusion)
    assert isinstance(network.deep_fusion, Fusion)
    f1 = s1(network.backbone.stem(images))
    f2 = s2(f1)
    f3 = s3(f2)
    e1, e2, e3 = (network.gates[i](f) for i, f in enumerate((f1, f2, f3)))
    p = [network.alignments[0](e1), network.alignments[1](e2), e3]
    u = fused_by_hand(network.fusion, p)
    f_4 = s4(u).mean((2, 3))
    r = [network.branches[i](p[i]).mean((2, 3)) for i in (0, 1)]
    v = fused_by_hand(network.deep_fusion, [network.fused_branch(u), s4(u)]).mean((2, 3))
    features = [*r, v, f_4]
    classifiers = [head.classifier for head in (*network.heads, network.fused_head, network.deepest_head)]
    for logits, classifier, feature in zip(found.logits, classifiers, features, strict=True):
        torch.testing.assert_close(logits, classifier(feature))
    for projected, projection, feature in zip(found.features, network.projections, r, strict=True):
        torch.testing.assert_close(projected, projection(feature))
    torch.testing.assert_close(found.deepest_feature, f_4)


SEPARABLE = ["conv 3x3 s2", "conv 1x1", "norm", "relu", "gate", "conv 3x3 s1", "conv 1x1", "norm", "relu"]


def kinds(module: nn.Module) -> list[str]:
    """What a sequence of layers is made of, in order."""
    if isinstance(module, nn.Sequential):
        return [kind for child in module for kind in kinds(child)]
    if isinstance(module, nn.Conv2d):
        assert module.kernel_size == (1, 1) or module.groups == module.in_channels == module.out_channels
        return ["conv 1x1" if module.kernel_size == (1, 1) else f"conv 3x3 s{module.stride[0]}"]
    return [{SpatialGate: "gate", nn.BatchNorm2d: "norm", nn.ReLU: "relu"}[type(module)]]


def test_branches_are_made_of_the_methods_layers() -> None:
    """P_1 and P_2, P_3 as it is, R_i and Q."""
    network = build_network(config())
    assert isinstance(network, FusionNetwork)
    assert [kinds(each) for each in network.alignments] == [[*SEPARABLE, "gate", *SEPARABLE], SEPARABLE, []]
    assert [kinds(each) for each in network.branches] == [["gate", *SEPARABLE, "gate"]] * 2
    assert kinds(network.fused_branch) == [*SEPARABLE, "gate"]


@pytest.mark.parametrize("head", [0, 1, 2])
def test_nothing_is_stopped_on_the_way_from_a_head_into_the_trunk(head: int) -> None:
    """The fused head teaches the last stage too; the others reach what lies before them."""
    network = build_network(config())
    assert isinstance(network, FusionNetwork)
    images = torch.randn(2, 3, 32, 32)
    F.cross_entropy(network.train()(images).logits[head], torch.tensor([0, 1])).backward()
    reached = [next(stage.parameters()).grad is not None for stage in network.backbone.stages]
    assert reached == [[True, False, False, False], [True, True, False, False], [True] * 4][head]
