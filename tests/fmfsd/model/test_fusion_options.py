"""Switches of the fusion, each by what it does: who reads the fused map, and which masks maps are fused under."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmfsd.model.build import FUSIONS
from fmfsd.model.fusion import Fusion, MeanFusion, SharedFusion, fusion_of
from fmfsd.model.network import BranchNetwork, DoubleFusionNetwork, FusionNetwork, Network, SideFusionNetwork
from fmfsd.model.spatial_enhancement import PooledEnhancement, SpatialEnhancement, SpatialScores
from tests.helpers.networks import assert_all_train, network_of

SMALL = "model.backbone=resnet8"
FORMS = {
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


def plain_with_the_trunk_of(network: Network) -> BranchNetwork:
    plain = network_of(SMALL, "method=plain")
    assert isinstance(plain, BranchNetwork)
    plain.load_state_dict({name: network.state_dict()[name] for name in plain.state_dict()})
    return plain


def moved_into_the_fusion(network: Network, *, train: bool) -> list[str]:
    """The heads that another fused map would give other logits."""
    assert isinstance(network, SideFusionNetwork)
    before = network.train(train)(images()).logits
    network.fusion.register_forward_hook(lambda _module, _maps, fused: fused + 1)
    after = network(images()).logits
    return [
        name for name, one, other in zip(network.head_names, before, after, strict=True) if not torch.equal(one, other)
    ]


@pytest.mark.parametrize(
    ("fusion", "kind", "readers"),
    [
        ("trunk", FusionNetwork, ["fused", "deepest"]),
        ("side", SideFusionNetwork, ["fused"]),
        ("both", DoubleFusionNetwork, ["side", "fused", "deepest"]),
    ],
)
def test_who_reads_the_fused_map(fusion: str, kind: type[nn.Module], readers: list[str]) -> None:
    network = network_of(SMALL, f"model.fusion={fusion}")
    assert type(network) is kind
    assert moved_into_the_fusion(network, train=False) == readers


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("changes", [("method=fmfsd_side",), ("method=byot",), ("method=byot_attention",)])
def test_an_untouched_trunk_gives_the_plain_backbones_logits_bit_for_bit(changes: tuple[str], train: bool) -> None:
    network = network_of(SMALL, *changes)
    plain = plain_with_the_trunk_of(network).train(train)
    assert torch.equal(network.train(train)(images()).logits[-1], plain(images()).logits[-1])


@pytest.mark.parametrize("method", ["fmfsd_side", "byot"])
def test_heads_beside_an_untouched_trunk_that_weigh_nothing_leave_it_its_gradient(method: str) -> None:
    """Identity 13."""
    network = network_of(SMALL, f"method={method}").double()
    plain = plain_with_the_trunk_of(network).double()
    trunk = {name: each for name, each in network.named_parameters() if name in dict(plain.named_parameters())}
    logits = network.train()(images().double()).logits
    loss = F.cross_entropy(logits[-1], torch.arange(3)) + sum(0 * each.sum() for each in logits[:-1])
    expected = F.cross_entropy(plain.train()(images().double()).logits[-1], torch.arange(3))
    found = torch.autograd.grad(loss, list(trunk.values()))
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(plain.parameters())), rtol=1e-12, atol=1e-14)


def test_the_side_head_reads_the_fused_map_before_it_meets_the_deepest_one() -> None:
    network = network_of(SMALL, "model.fusion=both").eval()
    assert isinstance(network, DoubleFusionNetwork)
    read: list[Tensor] = []
    network.fusion.register_forward_hook(lambda _module, _maps, fused: read.append(fused))
    logits = network(images()).logits[network.head_names.index("side")]
    own = network.get_submodule("side_heads.0.classifier")(network.fused_branch(read[0]).mean((2, 3)))
    assert torch.equal(logits, own)


def spread(mask: Tensor, x: Tensor) -> Tensor:
    """Each group's mask for all of its channels."""
    return mask.repeat_interleave(x.shape[1] // mask.shape[1], dim=1)


def scores_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, SpatialScores)
    groups = x.view(len(x), len(module.gamma), -1, *x.shape[2:])
    agreement = (groups * groups.mean((3, 4), keepdim=True)).sum(2)
    centred = agreement - agreement.mean((2, 3), keepdim=True)
    scale = module.gamma.view(-1, 1, 1) / (agreement.std((2, 3), keepdim=True) + 1e-5)
    return scale * centred + module.beta.view(-1, 1, 1)


def by_hand(form: str, module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """The fused map, position by position as the sources have it."""
    if form == "none":
        weights = [torch.ones_like(each) for each in inputs]
    elif form == "softmax":
        assert isinstance(module, SharedFusion)
        scores = [scores_by_hand(score, each).exp() for score, each in zip(module.scores, inputs, strict=True)]
        weights = [len(inputs) * spread(each / torch.stack(scores).sum(0), inputs[0]) for each in scores]
    else:
        assert isinstance(module, Fusion)
        masks = [mask_by_hand(each, x) for each, x in zip(module.enhancements, inputs, strict=True)]
        averaged = torch.stack(masks).mean(0)
        weights = [spread(mask if form == "own" else averaged, inputs[0]) for mask in masks]
    return torch.stack([weight * each for weight, each in zip(weights, inputs, strict=True)]).mean(0)


def mask_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, PooledEnhancement):
        pooled = F.pad(torch.stack([x.mean(1), x.max(1).values], dim=1), (3, 3, 3, 3))
        windows = pooled.unfold(2, 7, 1).unfold(3, 7, 1)
        return torch.sigmoid((windows * module.convolution.weight[0][:, None, None]).sum((1, 4, 5)).unsqueeze(1))
    assert isinstance(module, SpatialEnhancement)
    return torch.sigmoid(scores_by_hand(module, x))


def fusion_in(form: str, count: int) -> nn.Module:
    """Away from its initial values."""
    sem = form if form in ("cbam", "softmax", "none") else "sge"
    module = fusion_of(count, sem=sem, masks="own" if form == "own" else "averaged", groups=4).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_fused_map_is_its_formula(form: str, count: int) -> None:
    module, inputs = fusion_in(form, count), maps(count)
    torch.testing.assert_close(module(inputs), by_hand(form, module, inputs))


@pytest.mark.parametrize("form", FORMS)
def test_maps_may_be_permuted_together_with_their_masks(form: str) -> None:
    """Identity 2, of every kind of mask."""
    module, inputs, order = fusion_in(form, 3), maps(3), (2, 0, 1)
    expected = module(inputs)
    for name, each in list(module.named_children()):
        setattr(module, name, nn.ModuleList(list(each.children())[place] for place in order))
    torch.testing.assert_close(module([inputs[place] for place in order]), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_fused_map_is_no_larger_than_the_maps(form: str) -> None:
    """Identity 4, of every kind of mask: they lie between 0 and 1, and shares add up to 1."""
    module, inputs = fusion_in(form, 3), maps(3)
    sizes = torch.stack(inputs).abs()
    bound = sizes.amax(0) if form == "softmax" else sizes.mean(0)
    assert (module(inputs).abs() <= bound + 1e-15).all()


@pytest.mark.parametrize("form", ["own", "softmax", "none"])
def test_flipped_maps_give_the_flipped_fused_map_and_negated_maps_the_negated(form: str) -> None:
    """Identity 6; a 7x7 kernel has a left and a right, so not of cbam."""
    module, inputs = fusion_in(form, 3), maps(3)
    torch.testing.assert_close(module([each.flip(-1) for each in inputs]), module(inputs).flip(-1))
    torch.testing.assert_close(module([-each for each in inputs]), -module(inputs))


def test_at_the_start_shares_are_equal_and_the_fused_map_is_the_mean() -> None:
    fresh, inputs = fusion_of(3, sem="softmax", masks="own", groups=4).double(), maps(3)
    torch.testing.assert_close(fresh(inputs), torch.stack(inputs).mean(0))


@pytest.mark.parametrize("form", ["own", "softmax", "none"])
def test_equal_maps_with_equal_masks_are_fused_as_one(form: str) -> None:
    """Identity 3."""
    (single,) = maps(1)
    module, one = fusion_in(form, 3), fusion_in(form, 1)
    masks = [mask for group in module.children() for mask in group.children()]
    for mask in masks:
        mask.load_state_dict({name.split(".", 2)[2]: each for name, each in one.state_dict().items()})
    torch.testing.assert_close(module([single] * 3), one([single]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["zero", "constant", "single position"])
def test_gradients_of_degenerate_maps_are_finite_under_every_mask(form: str, kind: str) -> None:
    """Identity 5."""
    shape = (2, 16, 1, 1) if kind == "single position" else (2, 16, 4, 4)
    inputs = [torch.full(shape, float(number * (kind != "zero"))).requires_grad_() for number in (1, 2)]
    module = fusion_in(form, 2).float()
    gradients = torch.autograd.grad(module(inputs).square().sum(), [*inputs, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_kind_of_mask_works_in_every_place_of_the_fusion(form: str, fusion: str) -> None:
    """Identity 7 too: the memory layout changes nothing but rounding."""
    network = network_of(SMALL, f"model.fusion={fusion}", *FORMS[form]).double()
    assert_all_train(network, images(4).double())
    expected = network.eval()(images().double()).logits
    last = network.to(memory_format=torch.channels_last)
    found = last(images().double().contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    kinds = {"sge": Fusion, "own": Fusion, "cbam": Fusion, "softmax": SharedFusion, "none": MeanFusion}
    assert isinstance(network, SideFusionNetwork)
    assert (type(network.fusion), type(network.deep_fusion)) == (kinds[form],) * 2


def test_pooled_masks_are_made_in_fp32_under_autocast() -> None:
    module, x = PooledEnhancement(), maps(1)[0].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mask = module(x)
    assert mask.dtype == torch.float32
    torch.testing.assert_close(mask, module(x.float()))
