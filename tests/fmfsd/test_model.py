"""The identities of the method, its shapes, and its cost."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import TrainConfig, load_config
from fmfsd.config.known import BACKBONE_CHANNELS, taps
from fmfsd.model.backbones import BACKBONES
from fmfsd.model.build import Network, build_network, sem_groups
from fmfsd.model.enhance import SpatialEnhancement, SpatialGate, apply_mask
from fmfsd.model.fusion import Fusion, fuse
from fmfsd.model.network import FusionNetwork

GROUPS = 4


def config(*changes: str) -> TrainConfig:
    return load_config("cifar100-resnet18", changes)


def maps(count: int, *, seed: int = 0, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 16, size, size, generator=generator, dtype=torch.float64) for _ in range(count)]


def enhancement(seed: int) -> SpatialEnhancement:
    """One whose gamma and beta are away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    module = SpatialEnhancement(GROUPS).double()
    with torch.no_grad():
        module.gamma.normal_(generator=generator)
        module.beta.normal_(generator=generator)
    return module


def fusion(count: int) -> Fusion:
    module = Fusion(count, GROUPS).double()
    module.enhancements = nn.ModuleList(enhancement(seed) for seed in range(count))
    return module


def disturbed(network: Network) -> Network:
    """`network` with every gamma and beta away from its initial value, so that no two masks are alike."""
    torch.manual_seed(5)
    for module in network.modules():
        if isinstance(module, SpatialEnhancement):
            nn.init.normal_(module.gamma)
            nn.init.normal_(module.beta)
    return network


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module) -> float:
    """Multiply-accumulates for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(2, 3, 32, 32))
    return counter.get_total_flops() / 4


def test_factored_fusion_is_the_mean_of_the_masked_maps() -> None:
    """Identity 1."""
    inputs = maps(3)
    masks = [enhancement(seed)(each) for seed, each in enumerate(inputs)]
    mask = torch.stack(masks).mean(0)
    torch.testing.assert_close(fuse(inputs, masks), torch.stack([apply_mask(each, mask) for each in inputs]).mean(0))


def mask_by_hand(x: Tensor, module: SpatialEnhancement) -> Tensor:
    """Section 1 of the method, group by group and position by position."""
    batch, channels, height, width = x.shape
    mask, share = torch.empty(batch, GROUPS, height, width, dtype=x.dtype), channels // GROUPS
    for image in range(batch):
        for group in range(GROUPS):
            part = x[image, group * share : (group + 1) * share].reshape(share, -1)
            agreement = torch.stack([part.mean(1) @ part[:, position] for position in range(height * width)])
            centred = agreement - agreement.sum() / len(agreement)
            deviation = (centred.square().sum() / (len(agreement) - 1)).sqrt()
            score = module.gamma[group] * centred / (deviation + 1e-5) + module.beta[group]
            mask[image, group] = (1 / (1 + torch.exp(-score))).view(height, width)
    return mask


@pytest.mark.parametrize("scale", [1.0, 3e-3])
def test_a_mask_is_the_formula_of_the_method(scale: float) -> None:
    """Small maps too, where the deviation is no larger than what is added to it."""
    (x,) = maps(1, size=3)
    module = enhancement(4)
    torch.testing.assert_close(module(x * scale), mask_by_hand(x * scale, module))


def test_fusion_follows_maps_together_with_their_masks_only() -> None:
    """Identity 2."""
    inputs, module = maps(3), fusion(3)
    expected = module(inputs)
    order = (2, 0, 1)
    assert not torch.allclose(module([inputs[i] for i in order]), expected)
    module.enhancements = nn.ModuleList(module.enhancements[i] for i in order)
    torch.testing.assert_close(module([inputs[i] for i in order]), expected)


def test_maps_may_be_permuted_under_equal_masks() -> None:
    """Identity 2, the other half."""
    inputs, module = maps(3), Fusion(3, GROUPS).double()
    torch.testing.assert_close(module(inputs[::-1]), module(inputs))


def test_fusion_of_one_map_or_of_equal_maps_is_the_gate() -> None:
    """Identity 3."""
    (single,) = maps(1)
    gate = SpatialGate(GROUPS).double()
    gate.load_state_dict(enhancement(0).state_dict())
    torch.testing.assert_close(fusion(1)([single]), gate(single))
    module = fusion(3)
    for each in module.enhancements:
        each.load_state_dict(gate.state_dict())
    torch.testing.assert_close(module([single] * 3), gate(single))


def test_masks_lie_between_0_and_1_and_start_at_sigmoid_of_1() -> None:
    """Identity 4."""
    inputs = maps(3)
    for seed, each in enumerate(inputs):
        mask = enhancement(seed)(each)
        assert ((mask > 0) & (mask < 1)).all()
    bound = torch.stack(inputs).abs().mean(0)
    assert (fusion(3)(inputs).abs() <= bound).all()
    fresh = Fusion(3, GROUPS).double()(inputs)
    torch.testing.assert_close(fresh, torch.stack(inputs).mean(0) / (1 + math.exp(-1)))


@pytest.mark.parametrize("size", [1, 4])
def test_constant_maps_have_the_mask_of_beta(size: int) -> None:
    """Identity 5."""
    constant = torch.randn(2, 16, 1, 1, dtype=torch.float64).expand(2, 16, size, size)
    module = enhancement(3)
    torch.testing.assert_close(module(constant), torch.sigmoid(module.beta).view(1, -1, 1, 1).expand(2, -1, size, size))


@pytest.mark.parametrize("kind", ["zero", "constant", "single position", "one zero group", "tiny"])
def test_gradients_of_degenerate_maps_are_finite(kind: str) -> None:
    """Identity 5."""
    x = {
        "zero": torch.zeros(2, 16, 4, 4),
        "constant": torch.ones(2, 16, 4, 4),
        "single position": torch.randn(2, 16, 1, 1),
        "one zero group": torch.cat([torch.zeros(2, 4, 4, 4), torch.randn(2, 12, 4, 4)], dim=1),
        "tiny": torch.randn(2, 16, 4, 4) * 1e-20,
    }[kind].requires_grad_()
    gate = SpatialGate(GROUPS)
    nn.init.ones_(gate.gamma)
    gate(x).square().sum().backward()
    for gradient in (x.grad, gate.gamma.grad, gate.beta.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_flipped_maps_give_the_flipped_fusion_and_negated_maps_the_negated() -> None:
    """Identity 6."""
    inputs, module = maps(3), fusion(3)
    torch.testing.assert_close(module([each.flip(-1) for each in inputs]), module(inputs).flip(-1))
    torch.testing.assert_close(module([-each for each in inputs]), -module(inputs))


def test_channels_that_groups_do_not_divide_are_refused() -> None:
    """Identity 7."""
    with pytest.raises(ValueError, match="16 channels can't be cut into 5 groups"):
        SpatialEnhancement(5)(torch.zeros(1, 16, 2, 2))


def test_memory_layout_changes_nothing_but_rounding() -> None:
    """Identity 7."""
    network = build_network(config("model.backbone=resnet8")).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = network(images).logits
    found = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last)).logits
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_mask_is_made_in_fp32_under_autocast() -> None:
    x = torch.randn(2, 16, 8, 8).bfloat16()
    module = SpatialEnhancement(GROUPS)
    nn.init.ones_(module.gamma)
    with torch.autocast("cpu", torch.bfloat16):
        mask = module(x)
        assert mask.dtype == torch.float32
        assert apply_mask(x, mask).dtype == torch.bfloat16
    torch.testing.assert_close(mask, module(x.float()))


def test_fusion_needs_a_mask_for_each_map() -> None:
    with pytest.raises(ValueError, match="2 maps and 1 masks"):
        fuse(maps(2), [torch.ones(2, GROUPS, 8, 8)])


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


class Pruned(nn.Module):
    """What the deepest head needs of FMFSD, and nothing else."""

    def __init__(self, network: FusionNetwork) -> None:
        super().__init__()
        self.backbone, self.gates, self.alignments = network.backbone, network.gates, network.alignments
        self.fusion, self.deepest_head = network.fusion, network.deepest_head

    def forward(self, images: Tensor) -> Tensor:
        x, aligned = self.backbone.stem(images), []
        for stage, gate, alignment in zip(self.backbone.stages, self.gates, self.alignments, strict=False):
            x = gate(stage(x))
            aligned.append(alignment(x))
        logits: Tensor = self.deepest_head(self.backbone.stages[-1](self.fusion(aligned)))[1]
        return logits


def test_the_deepest_head_alone_costs_the_published_share() -> None:
    """FMFSD inference, deepest head, on ResNet-18: x1.011 parameters, x1.018 multiply-accumulates."""
    network, plain = build_network(config()), build_network(config("method=plain"))
    assert isinstance(network, FusionNetwork)
    pruned = Pruned(network).eval()
    assert round(parameters(pruned) / parameters(plain), 3) == 1.011
    assert round(macs(pruned) / macs(plain.eval()), 3) == 1.018


def test_the_deepest_head_needs_no_branch() -> None:
    """Identity 12: bitwise in fp32."""
    network = disturbed(build_network(config("model.backbone=resnet8")))
    assert isinstance(network, FusionNetwork)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(Pruned(network).eval()(images), network.eval()(images).logits[-1])


@pytest.mark.parametrize(("backbone", "count"), [("resnet8", 83_892), ("resnet20", 278_324)])
def test_small_cifar_forms_have_the_literatures_size(backbone: str, count: int) -> None:
    """CIFAR-100, 1x1 shortcuts: 0.08 M and 0.28 M (Tian et al. 2020, arXiv:1910.10699, appendix)."""
    assert parameters(build_network(config("method=plain", f"model.backbone={backbone}"))) == count


@pytest.mark.parametrize(
    ("backbone", "groups"), [("resnet8", 16), ("resnet18", 32), ("resnet20", 16), ("resnet34", 32), ("resnet50", 32)]
)
def test_groups_are_the_largest_common_divisor_up_to_32(backbone: str, groups: int) -> None:
    assert sem_groups("auto", BACKBONE_CHANNELS[backbone]) == groups


def test_the_config_knows_every_backbones_stages() -> None:
    assert {name: make().channels for name, make in BACKBONES.items()} == dict(BACKBONE_CHANNELS)


def every_placement(backbone: str) -> list[tuple[str, ...]]:
    known = taps(backbone)
    return [chosen for size in range(1, len(known) + 1) for chosen in itertools.combinations(known, size)]


def train_backward(network: Network) -> None:
    outputs = network.train()(torch.randn(4, 3, 32, 32))
    loss = sum(F.cross_entropy(logits, torch.arange(4)) for logits in outputs.logits)
    assert isinstance(loss, Tensor)
    loss = loss + sum((feature - outputs.deepest_feature.detach()).norm() for feature in outputs.features)
    loss.backward()


@pytest.mark.parametrize("method", ["fmfsd", "byot"])
@pytest.mark.parametrize("placement", every_placement("resnet18"), ids="-".join)
def test_every_placement_uses_every_parameter(method: str, placement: tuple[str, ...]) -> None:
    branches = f"model.branches=[{', '.join(placement)}]"
    network = build_network(config(f"method={method}", branches, "data.name=cifar10"))
    train_backward(network)
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused
    own = len(placement) - (method == "fmfsd")
    names = [f"branch{number}" for number in range(1, own + 1)] + ["fused"] * (method == "fmfsd") + ["deepest"]
    assert list(network.head_names) == names
    outputs = network(torch.zeros(2, 3, 32, 32))
    assert [tuple(logits.shape) for logits in outputs.logits] == [(2, 10)] * len(names)
    assert [tuple(feature.shape) for feature in outputs.features] == [(2, 512)] * own
    assert network.eval()(torch.zeros(2, 3, 32, 32)).features == []


@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize("method", ["plain", "byot", "fmfsd"])
def test_every_backbone_trains_under_every_method(backbone: str, method: str) -> None:
    network = build_network(config(f"method={method}", f"model.backbone={backbone}"))
    train_backward(network)
    assert all(parameter.grad is not None for parameter in network.parameters())


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
    network = disturbed(build_network(config()).double()).train()
    assert isinstance(network, FusionNetwork)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    found = network(images)
    s1, s2, s3, s4 = network.backbone.stages
    e1 = network.gates[0](s1(network.backbone.stem(images)))
    e2 = network.gates[1](s2(e1))
    e3 = network.gates[2](s3(e2))
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
    images = torch.randn(2, 3, 32, 32)
    F.cross_entropy(network.train()(images).logits[head], torch.tensor([0, 1])).backward()
    reached = [next(stage.parameters()).grad is not None for stage in network.backbone.stages]
    assert reached == [[True, False, False, False], [True, True, False, False], [True] * 4][head]
