"""The network of the method: its structure, combinations of taps, initial weights, and cost."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmfsd.config.names import list_taps
from fmfsd.model.build import build_network
from fmfsd.model.fusion import Fusion
from fmfsd.model.network import FusionNetwork
from fmfsd.model.spatial_enhancement import SpatialGate
from fmfsd.tap_names import is_stage
from tests.helpers.networks import assert_all_train, count_macs, count_parameters, make_config, make_network


def test_the_memory_layout_changes_only_rounding() -> None:
    """Identity 7."""
    network = build_network(make_config("model.backbone=resnet8")).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = network(images).logits
    logits = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last)).logits
    for one, other in zip(expected, logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("backbone", "base", "without_features", "with_features"),
    [
        ("resnet18", (11.220, 555.5), (1.079, 1.036), (1.125, 1.037)),
        ("resnet34", (21.328, 1159.5), (1.041, 1.017), (1.066, 1.018)),
        ("resnet50", (23.705, 1298.0), (1.503, 1.236), (1.857, 1.242)),
    ],
)
def test_parameters_and_multiply_accumulates_are_the_published_ones(
    backbone: str, base: tuple[float, float], without_features: tuple[float, float], with_features: tuple[float, float]
) -> None:
    """Compare the backbone's values in millions, and FMFSD's factors relative to it."""
    plain = build_network(make_config("method=plain", f"model.backbone={backbone}")).eval()
    assert (count_parameters(plain) / 1e6, count_macs(plain) / 1e6) == pytest.approx(base, abs=0.06)
    for beta, mode, expected in ((0.0, False, without_features), (0.03, True, with_features)):
        network = build_network(make_config(f"model.backbone={backbone}", f"distill.beta={beta}")).train(mode)
        factors = (count_parameters(network) / count_parameters(plain), count_macs(network) / count_macs(plain))
        assert tuple(round(factor, 3) for factor in factors) == expected


def every_placement(backbone: str) -> list[tuple[str, ...]]:
    stages = [tap for tap in list_taps(backbone) if is_stage(tap)]
    return [chosen for size in range(1, len(stages) + 1) for chosen in itertools.combinations(stages, size)]


@pytest.mark.parametrize("method", ["fmfsd", "byot"])
@pytest.mark.parametrize("placement", every_placement("resnet18"), ids="-".join)
def test_every_placement_uses_every_parameter(method: str, placement: tuple[str, ...]) -> None:
    branches = f"model.branches=[{', '.join(placement)}]"
    network = build_network(make_config(f"method={method}", branches, "data.name=cifar10"))
    assert_all_train(network, torch.randn(4, 3, 32, 32))
    num_branches = len(placement) - (method == "fmfsd")
    names = [f"branch{number}" for number in range(1, num_branches + 1)] + ["fused"] * (method == "fmfsd") + ["deepest"]
    assert list(network.head_names) == names
    outputs = network(torch.zeros(2, 3, 32, 32))
    assert [tuple(logits.shape) for logits in outputs.logits] == [(2, 10)] * len(names)
    assert [tuple(feature.shape) for feature in outputs.features] == [(2, 512)] * num_branches
    assert network.eval()(torch.zeros(2, 3, 32, 32)).features == []


def test_placement_order_does_not_matter() -> None:
    orders = ("[stage3, stage1]", "[stage1, stage3]")
    one, other = (build_network(make_config(f"model.branches={order}")).state_dict() for order in orders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_initial_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(1)
    one = build_network(make_config("seed=3", "model.backbone=resnet8")).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    same_seed = build_network(make_config("seed=3", "model.backbone=resnet8")).state_dict()
    other = build_network(make_config("seed=4", "model.backbone=resnet8")).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same_seed[name]) for name in one)
    assert not torch.equal(one["backbone.stem.0.weight"], other["backbone.stem.0.weight"])


def test_all_methods_start_from_the_same_trunk() -> None:
    trunks = [
        build_network(make_config(f"method={method}", "model.backbone=resnet8")).backbone
        for method in ("plain", "byot", "fmfsd")
    ]
    first, *others = (trunk.state_dict() for trunk in trunks)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_convolutions_start_by_kaiming_normal_fan_out() -> None:
    weight = build_network(make_config()).backbone.state_dict()["stages.3.1.conv2.weight"]
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def reference_fusion(fusion: Fusion, maps: list[Tensor]) -> Tensor:
    """Average the masks, apply the average to every map, and average the results."""
    mask = sum(enhance(each) for enhance, each in zip(fusion.enhancements, maps, strict=True)) / len(maps)
    assert isinstance(mask, Tensor)
    wide = mask.repeat_interleave(maps[0].shape[1] // mask.shape[1], dim=1)
    fused = sum(wide * each for each in maps) / len(maps)
    assert isinstance(fused, Tensor)
    return fused


def test_the_network_has_the_structure_of_the_method() -> None:
    """Section 1 line by line, with its symbols, for ResNet-18 with branches after stages 1, 2 and 3."""
    network = make_network().double().train()
    assert isinstance(network, FusionNetwork)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    outputs = network(images)
    s1, s2, s3, s4 = network.backbone.stages
    assert isinstance(network.fusion, Fusion)
    assert isinstance(network.deep_fusion, Fusion)
    f1 = s1(network.backbone.stem(images))
    f2 = s2(f1)
    f3 = s3(f2)
    e1, e2, e3 = (network.gates[i](f) for i, f in enumerate((f1, f2, f3)))
    p = [network.alignments[0](e1), network.alignments[1](e2), e3]
    u = reference_fusion(network.fusion, p)
    f_4 = s4(u).mean((2, 3))
    r = [network.branches[i](p[i]).mean((2, 3)) for i in (0, 1)]
    v = reference_fusion(network.deep_fusion, [network.fused_branch(u), s4(u)]).mean((2, 3))
    features = [*r, v, f_4]
    classifiers = [head.classifier for head in (*network.heads, network.fused_head, network.deepest_head)]
    for logits, classifier, feature in zip(outputs.logits, classifiers, features, strict=True):
        torch.testing.assert_close(logits, classifier(feature))
    for projected, projection, feature in zip(outputs.features, network.projections, r, strict=True):
        torch.testing.assert_close(projected, projection(feature))
    torch.testing.assert_close(outputs.deepest_feature, f_4)


SEPARABLE = ["conv 3x3 s2", "conv 1x1", "norm", "relu", "gate", "conv 3x3 s1", "conv 1x1", "norm", "relu"]


def layer_kinds(module: nn.Module) -> list[str]:
    """Return the kinds of all layers in a sequence, in order."""
    if isinstance(module, nn.Sequential):
        return [kind for child in module for kind in layer_kinds(child)]
    if isinstance(module, nn.Conv2d):
        assert module.kernel_size == (1, 1) or module.groups == module.in_channels == module.out_channels
        return ["conv 1x1" if module.kernel_size == (1, 1) else f"conv 3x3 s{module.stride[0]}"]
    return [{SpatialGate: "gate", nn.BatchNorm2d: "norm", nn.ReLU: "relu"}[type(module)]]


def test_branches_have_the_layers_of_the_method() -> None:
    """P_1 and P_2, the identity for P_3, R_i and Q."""
    network = build_network(make_config())
    assert isinstance(network, FusionNetwork)
    assert [layer_kinds(each) for each in network.alignments] == [[*SEPARABLE, "gate", *SEPARABLE], SEPARABLE, []]
    assert [layer_kinds(each) for each in network.branches] == [["gate", *SEPARABLE, "gate"]] * 2
    assert layer_kinds(network.fused_branch) == [*SEPARABLE, "gate"]


@pytest.mark.parametrize("head", [0, 1, 2])
def test_the_gradient_of_each_head_reaches_the_trunk(head: int) -> None:
    """The fused head's gradient reaches all stages, the other heads' the stages before their branch."""
    network = build_network(make_config())
    assert isinstance(network, FusionNetwork)
    images = torch.randn(2, 3, 32, 32)
    F.cross_entropy(network.train()(images).logits[head], torch.tensor([0, 1])).backward()
    has_gradient = [next(stage.parameters()).grad is not None for stage in network.backbone.stages]
    assert has_gradient == [[True, False, False, False], [True, True, False, False], [True] * 4][head]
