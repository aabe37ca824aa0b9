"""Options of the fusion: which heads depend on the fused map, and the masks under which maps are fused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmfsd.model.build import FUSION_NETWORKS
from fmfsd.model.fusion import Fusion, MeanFusion, SoftmaxFusion, build_fusion
from fmfsd.model.network import BranchNetwork, DoubleFusionNetwork, FusionNetwork, Network, SideFusionNetwork
from fmfsd.model.spatial_enhancement import PooledEnhancement, SpatialEnhancement, SpatialScores
from tests.helpers.networks import assert_all_train, make_network

SMALL = "model.backbone=resnet8"
MASK_KINDS = {
    "sge": ("model.sem=sge",),
    "own": ("model.masks=own",),
    "cbam": ("model.sem=cbam",),
    "softmax": ("model.sem=softmax", "model.masks=own"),
    "none": ("model.sem=none",),
}


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def maps(count: int, *, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 16, size, size, generator=generator, dtype=torch.float64) for _ in range(count)]


def plain_network_with_trunk_of(network: Network) -> BranchNetwork:
    plain = make_network(SMALL, "method=plain")
    assert isinstance(plain, BranchNetwork)
    plain.load_state_dict({name: network.state_dict()[name] for name in plain.state_dict()})
    return plain


def heads_that_use_the_fused_map(network: Network, *, train: bool) -> list[str]:
    """Return the heads whose logits change with the fused map."""
    assert isinstance(network, SideFusionNetwork)
    before = network.train(train)(images()).logits
    network.fusion.register_forward_hook(lambda _module, _maps, fused: fused + 1)
    after = network(images()).logits
    return [
        name for name, one, other in zip(network.head_names, before, after, strict=True) if not torch.equal(one, other)
    ]


@pytest.mark.parametrize(
    ("fusion", "kind", "dependent_heads"),
    [
        ("trunk", FusionNetwork, ["fused", "deepest"]),
        ("side", SideFusionNetwork, ["fused"]),
        ("both", DoubleFusionNetwork, ["side", "fused", "deepest"]),
    ],
)
def test_which_heads_depend_on_the_fused_map(fusion: str, kind: type[nn.Module], dependent_heads: list[str]) -> None:
    network = make_network(SMALL, f"model.fusion={fusion}")
    assert type(network) is kind
    assert heads_that_use_the_fused_map(network, train=False) == dependent_heads


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("changes", [("method=fmfsd_side",), ("method=byot",), ("method=byot_attention",)])
def test_a_trunk_without_fusion_has_the_logits_of_the_plain_backbone_bit_for_bit(
    changes: tuple[str], train: bool
) -> None:
    network = make_network(SMALL, *changes)
    plain = plain_network_with_trunk_of(network).train(train)
    assert torch.equal(network.train(train)(images()).logits[-1], plain(images()).logits[-1])


@pytest.mark.parametrize("method", ["fmfsd_side", "byot"])
def test_heads_with_weight_0_do_not_change_the_gradient_of_the_trunk(method: str) -> None:
    """Identity 13."""
    network = make_network(SMALL, f"method={method}").double()
    plain = plain_network_with_trunk_of(network).double()
    trunk = {name: each for name, each in network.named_parameters() if name in dict(plain.named_parameters())}
    logits = network.train()(images().double()).logits
    loss = F.cross_entropy(logits[-1], torch.arange(3)) + sum(0 * each.sum() for each in logits[:-1])
    expected = F.cross_entropy(plain.train()(images().double()).logits[-1], torch.arange(3))
    gradients = torch.autograd.grad(loss, list(trunk.values()))
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, list(plain.parameters())), rtol=1e-12, atol=1e-14
    )


def test_the_side_head_uses_the_fused_map_before_the_fusion_with_the_deepest_map() -> None:
    network = make_network(SMALL, "model.fusion=both").eval()
    assert isinstance(network, DoubleFusionNetwork)
    fused_maps: list[Tensor] = []
    network.fusion.register_forward_hook(lambda _module, _maps, fused: fused_maps.append(fused))
    logits = network(images()).logits[network.head_names.index("side")]
    expected = network.get_submodule("side_heads.0.classifier")(network.fused_branch(fused_maps[0]).mean((2, 3)))
    assert torch.equal(logits, expected)


def repeat_over_channels(mask: Tensor, x: Tensor) -> Tensor:
    """Repeat each group's mask for all channels of the group."""
    return mask.repeat_interleave(x.shape[1] // mask.shape[1], dim=1)


def reference_scores(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, SpatialScores)
    groups = x.view(len(x), len(module.gamma), -1, *x.shape[2:])
    agreement = (groups * groups.mean((3, 4), keepdim=True)).sum(2)
    centred = agreement - agreement.mean((2, 3), keepdim=True)
    scale = module.gamma.view(-1, 1, 1) / (agreement.std((2, 3), keepdim=True) + 1e-5)
    return scale * centred + module.beta.view(-1, 1, 1)


def reference_fusion(mask_kind: str, module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Compute the fused map from the published formulas."""
    if mask_kind == "none":
        weights = [torch.ones_like(each) for each in inputs]
    elif mask_kind == "softmax":
        assert isinstance(module, SoftmaxFusion)
        scores = [reference_scores(score, each).exp() for score, each in zip(module.scores, inputs, strict=True)]
        weights = [len(inputs) * repeat_over_channels(each / torch.stack(scores).sum(0), inputs[0]) for each in scores]
    else:
        assert isinstance(module, Fusion)
        masks = [reference_mask(each, x) for each, x in zip(module.enhancements, inputs, strict=True)]
        averaged = torch.stack(masks).mean(0)
        weights = [repeat_over_channels(mask if mask_kind == "own" else averaged, inputs[0]) for mask in masks]
    return torch.stack([weight * each for weight, each in zip(weights, inputs, strict=True)]).mean(0)


def reference_mask(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, PooledEnhancement):
        pooled = F.pad(torch.stack([x.mean(1), x.max(1).values], dim=1), (3, 3, 3, 3))
        windows = pooled.unfold(2, 7, 1).unfold(3, 7, 1)
        return torch.sigmoid((windows * module.convolution.weight[0][:, None, None]).sum((1, 4, 5)).unsqueeze(1))
    assert isinstance(module, SpatialEnhancement)
    return torch.sigmoid(reference_scores(module, x))


def random_fusion(mask_kind: str, count: int) -> nn.Module:
    """Return a fusion module with random parameters."""
    sem = mask_kind if mask_kind in ("cbam", "softmax", "none") else "sge"
    module = build_fusion(count, sem=sem, masks="own" if mask_kind == "own" else "averaged", groups=4).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("mask_kind", MASK_KINDS)
def test_a_fused_map_equals_its_formula(mask_kind: str, count: int) -> None:
    module, inputs = random_fusion(mask_kind, count), maps(count)
    torch.testing.assert_close(module(inputs), reference_fusion(mask_kind, module, inputs))


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
def test_maps_may_be_permuted_together_with_their_masks(mask_kind: str) -> None:
    """Identity 2, for every kind of mask."""
    module, inputs, order = random_fusion(mask_kind, 3), maps(3), (2, 0, 1)
    expected = module(inputs)
    for name, each in list(module.named_children()):
        setattr(module, name, nn.ModuleList(list(each.children())[index] for index in order))
    torch.testing.assert_close(module([inputs[index] for index in order]), expected)


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
def test_a_fused_map_is_no_larger_than_the_maps(mask_kind: str) -> None:
    """Identity 4, for every kind of mask: masks are between 0 and 1, and softmax shares add up to 1."""
    module, inputs = random_fusion(mask_kind, 3), maps(3)
    sizes = torch.stack(inputs).abs()
    bound = sizes.amax(0) if mask_kind == "softmax" else sizes.mean(0)
    assert (module(inputs).abs() <= bound + 1e-15).all()


@pytest.mark.parametrize("mask_kind", ["own", "softmax", "none"])
def test_fusion_with_own_softmax_or_no_masks_commutes_with_flipping_and_negating(mask_kind: str) -> None:
    """Identity 6; not for cbam, whose 7x7 kernel is not symmetric."""
    module, inputs = random_fusion(mask_kind, 3), maps(3)
    torch.testing.assert_close(module([each.flip(-1) for each in inputs]), module(inputs).flip(-1))
    torch.testing.assert_close(module([-each for each in inputs]), -module(inputs))


def test_initially_softmax_shares_are_equal_and_the_fused_map_is_the_mean() -> None:
    module, inputs = build_fusion(3, sem="softmax", masks="own", groups=4).double(), maps(3)
    torch.testing.assert_close(module(inputs), torch.stack(inputs).mean(0))


@pytest.mark.parametrize("mask_kind", ["own", "softmax", "none"])
def test_equal_maps_with_equal_masks_are_fused_like_one_map(mask_kind: str) -> None:
    """Identity 3."""
    (single,) = maps(1)
    module, one = random_fusion(mask_kind, 3), random_fusion(mask_kind, 1)
    masks = [mask for group in module.children() for mask in group.children()]
    for mask in masks:
        mask.load_state_dict({name.split(".", 2)[2]: each for name, each in one.state_dict().items()})
    torch.testing.assert_close(module([single] * 3), one([single]))


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
@pytest.mark.parametrize("kind", ["zero", "constant", "single position"])
def test_gradients_of_degenerate_maps_are_finite_under_every_mask(mask_kind: str, kind: str) -> None:
    """Identity 5."""
    shape = (2, 16, 1, 1) if kind == "single position" else (2, 16, 4, 4)
    inputs = [torch.full(shape, float(number * (kind != "zero"))).requires_grad_() for number in (1, 2)]
    module = random_fusion(mask_kind, 2).float()
    gradients = torch.autograd.grad(module(inputs).square().sum(), [*inputs, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
@pytest.mark.parametrize("fusion", FUSION_NETWORKS)
def test_every_kind_of_mask_works_with_every_kind_of_fusion(mask_kind: str, fusion: str) -> None:
    """Also identity 7: the memory layout changes only rounding."""
    network = make_network(SMALL, f"model.fusion={fusion}", *MASK_KINDS[mask_kind]).double()
    assert_all_train(network, images(4).double())
    expected = network.eval()(images().double()).logits
    channels_last = network.to(memory_format=torch.channels_last)
    logits = channels_last(images().double().contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    fusion_types = {"sge": Fusion, "own": Fusion, "cbam": Fusion, "softmax": SoftmaxFusion, "none": MeanFusion}
    assert isinstance(network, SideFusionNetwork)
    assert (type(network.fusion), type(network.deep_fusion)) == (fusion_types[mask_kind],) * 2


def test_pooled_masks_are_computed_in_fp32_under_autocast() -> None:
    module, x = PooledEnhancement(), maps(1)[0].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mask = module(x)
    assert mask.dtype == torch.float32
    torch.testing.assert_close(mask, module(x.float()))
