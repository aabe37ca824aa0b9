"""Masks of spatial enhancement, and the fusion of maps: the identities of the method."""

import math

import pytest
import torch
from torch import Tensor, nn

from fmfsd.model.fusion import Fusion, fuse
from fmfsd.model.spatial_enhancement import SpatialEnhancement, SpatialGate, apply_mask

GROUPS = 4


def random_maps(count: int, *, seed: int = 0, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 16, size, size, generator=generator, dtype=torch.float64) for _ in range(count)]


def random_enhancement(seed: int) -> SpatialEnhancement:
    """Return a module whose gamma and beta differ from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    module = SpatialEnhancement(GROUPS).double()
    with torch.no_grad():
        module.gamma.normal_(generator=generator)
        module.beta.normal_(generator=generator)
    return module


def initial_fusion(count: int) -> Fusion:
    return Fusion([SpatialEnhancement(GROUPS) for _ in range(count)]).double()


def random_fusion(count: int) -> Fusion:
    module = initial_fusion(count)
    module.enhancements = nn.ModuleList(random_enhancement(seed) for seed in range(count))
    return module


def test_factored_fusion_is_the_mean_of_the_masked_maps() -> None:
    """Identity 1."""
    inputs = random_maps(3)
    masks = [random_enhancement(seed)(each) for seed, each in enumerate(inputs)]
    mask = torch.stack(masks).mean(0)
    torch.testing.assert_close(fuse(inputs, masks), torch.stack([apply_mask(each, mask) for each in inputs]).mean(0))


def reference_mask(x: Tensor, module: SpatialEnhancement) -> Tensor:
    """Compute section 1 of the method, group by group and position by position."""
    batch, channels, height, width = x.shape
    mask, channels_per_group = torch.empty(batch, GROUPS, height, width, dtype=x.dtype), channels // GROUPS
    for image in range(batch):
        for group in range(GROUPS):
            part = x[image, group * channels_per_group : (group + 1) * channels_per_group].reshape(
                channels_per_group, -1
            )
            agreement = torch.stack([part.mean(1) @ part[:, position] for position in range(height * width)])
            centred = agreement - agreement.sum() / len(agreement)
            deviation = (centred.square().sum() / (len(agreement) - 1)).sqrt()
            score = module.gamma[group] * centred / (deviation + 1e-5) + module.beta[group]
            mask[image, group] = (1 / (1 + torch.exp(-score))).view(height, width)
    return mask


@pytest.mark.parametrize("scale", [1.0, 3e-3])
def test_a_mask_is_the_formula_of_the_method(scale: float) -> None:
    """Also for maps so small that the deviation is no larger than the epsilon added to it."""
    (x,) = random_maps(1, size=3)
    module = random_enhancement(4)
    torch.testing.assert_close(module(x * scale), reference_mask(x * scale, module))


def test_fusion_is_invariant_only_if_maps_and_masks_are_permuted_together() -> None:
    """Identity 2."""
    inputs, module = random_maps(3), random_fusion(3)
    expected = module(inputs)
    order = (2, 0, 1)
    assert not torch.allclose(module([inputs[i] for i in order]), expected)
    module.enhancements = nn.ModuleList(module.enhancements[i] for i in order)
    torch.testing.assert_close(module([inputs[i] for i in order]), expected)


def test_maps_may_be_permuted_under_equal_masks() -> None:
    """Identity 2, second part."""
    inputs, module = random_maps(3), initial_fusion(3)
    torch.testing.assert_close(module(inputs[::-1]), module(inputs))


def test_fusion_of_one_map_or_of_equal_maps_is_the_gate() -> None:
    """Identity 3."""
    (single,) = random_maps(1)
    gate = SpatialGate(GROUPS).double()
    gate.load_state_dict(random_enhancement(0).state_dict())
    torch.testing.assert_close(random_fusion(1)([single]), gate(single))
    module = random_fusion(3)
    for each in module.enhancements:
        each.load_state_dict(gate.state_dict())
    torch.testing.assert_close(module([single] * 3), gate(single))


def test_masks_are_between_0_and_1_and_start_at_sigmoid_of_1() -> None:
    """Identity 4."""
    inputs = random_maps(3)
    for seed, each in enumerate(inputs):
        mask = random_enhancement(seed)(each)
        assert ((mask > 0) & (mask < 1)).all()
    bound = torch.stack(inputs).abs().mean(0)
    assert (random_fusion(3)(inputs).abs() <= bound).all()
    torch.testing.assert_close(initial_fusion(3)(inputs), torch.stack(inputs).mean(0) / (1 + math.exp(-1)))


@pytest.mark.parametrize("size", [1, 4])
def test_constant_maps_have_the_mask_of_beta(size: int) -> None:
    """Identity 5."""
    constant = torch.randn(2, 16, 1, 1, dtype=torch.float64).expand(2, 16, size, size)
    module = random_enhancement(3)
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


def test_fusion_commutes_with_flipping_and_negating_the_maps() -> None:
    """Identity 6."""
    inputs, module = random_maps(3), random_fusion(3)
    torch.testing.assert_close(module([each.flip(-1) for each in inputs]), module(inputs).flip(-1))
    torch.testing.assert_close(module([-each for each in inputs]), -module(inputs))


def test_channels_that_groups_do_not_divide_are_an_error() -> None:
    """Identity 7."""
    with pytest.raises(ValueError, match="16 channels can't be divided into 5 groups"):
        SpatialEnhancement(5)(torch.zeros(1, 16, 2, 2))


def test_the_mask_is_computed_in_fp32_under_autocast() -> None:
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
        fuse(random_maps(2), [torch.ones(2, GROUPS, 8, 8)])
