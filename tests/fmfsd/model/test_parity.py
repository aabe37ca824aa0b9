"""FMFSD compared with a reference implementation, with random weights in fp64: outputs, loss, gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fmfsd.config import load_config
from fmfsd.engine.build import build_loss
from fmfsd.model.build import build_network
from fmfsd.model.network import Network, Outputs
from tests.helpers import restated
from tests.helpers.restated import ReferenceOutputs, Weights

LOSS_WEIGHTS = {"alpha": 0.3, "beta": 0.03, "temperature": 3.0}
LABELS = torch.tensor([7, 0, 99])
IMAGES = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@dataclass(frozen=True)
class Computed:
    """Outputs, loss and gradients that the product's network and loss compute from IMAGES and LABELS."""

    weights: Weights
    outputs: Outputs
    loss: Tensor
    """The reported value."""
    gradients: Sequence[Tensor]
    """Gradients of the differentiated value, by weight."""


def shifted_network(backbone: str) -> Network:
    """Return a network whose parameters, including gamma and beta, all differ from their initial values."""
    network = build_network(load_config("cifar100-resnet18", [f"model.backbone={backbone}"])).double().train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.3 * parameter.std()
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def compute(backbone: str) -> Computed:
    network, loss = shifted_network(backbone), build_loss(load_config("cifar100-resnet18"))
    outputs = network(IMAGES)
    terms = loss.terms(outputs, LABELS)
    total = loss.total(terms, terms.squares_F.detach(), world_size=1)
    weights = dict(network.named_parameters())
    gradients = torch.autograd.grad(total, list(weights.values()))
    reported = terms.label + terms.soft_target + LOSS_WEIGHTS["beta"] * terms.squares_F.sqrt().sum()
    return Computed({name: each.detach() for name, each in weights.items()}, outputs, reported, gradients)


@pytest.fixture(scope="module")
def computed() -> Computed:
    return compute("resnet18")


def relative_difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the largest difference in a pair, relative to the largest value of the pair's second tensor."""
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def difference(computed: Computed, reference: ReferenceOutputs) -> float:
    """Return the relative difference of outputs and loss."""
    values = [*computed.outputs.logits, *computed.outputs.features, computed.outputs.deepest_feature, computed.loss]
    loss = restated.loss(reference, LABELS, **LOSS_WEIGHTS)
    expected = [*reference.logits, *reference.features, reference.deepest_feature, loss]
    return relative_difference([*zip(values, expected, strict=True)])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnet8"])
def test_outputs_loss_and_gradients_equal_the_reference(backbone: str) -> None:
    computed = compute(backbone)
    weights = {name: each.clone().requires_grad_() for name, each in computed.weights.items()}
    reference = restated.network(weights, IMAGES)
    assert difference(computed, reference) < 1e-10
    gradients = torch.autograd.grad(restated.loss(reference, LABELS, **LOSS_WEIGHTS), list(weights.values()))
    assert relative_difference([*zip(computed.gradients, gradients, strict=True)]) < 1e-8


def feed_gated_maps_to_next_stage(weights: Weights, images: Tensor) -> list[Tensor]:
    """Feed E_k instead of F_k to stage k + 1."""
    enhanced: list[Tensor] = []
    x = restated.stem(weights, images)
    for k in range(restated.count(weights, "gates.")):
        x = restated.sge(restated.weights_below(weights, f"gates.{k}"), restated.stage(weights, x, k))
        enhanced.append(x)
    return enhanced


def add_eps_to_variance(agreement: Tensor) -> Tensor:
    centred = agreement - agreement.mean((2, 3), keepdim=True)
    return centred / (agreement.var((2, 3), keepdim=True) + restated.EPSILON).sqrt()


def use_biased_deviation(agreement: Tensor) -> Tensor:
    centred = agreement - agreement.mean((2, 3), keepdim=True)
    return centred / (agreement.std((2, 3), unbiased=False, keepdim=True) + restated.EPSILON)


def use_own_masks(weights: Weights, maps: Sequence[Tensor]) -> Tensor:
    gates = [restated.weights_below(weights, f"enhancements.{i}") for i in range(len(maps))]
    return torch.stack([restated.sge(gate, each) for gate, each in zip(gates, maps, strict=True)]).mean(0)


def sum_maps(weights: Weights, maps: Sequence[Tensor]) -> Tensor:
    return FUSE(weights, maps) * len(maps)


def omit_gates(weights: Weights, x: Tensor) -> Tensor:
    return restated.align(restated.weights_below(weights, "1"), x)


def multiply_by_t_squared(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature**2 * SOFT(student, teacher, temperature)


def use_norm_per_sample(feature: Tensor, teacher: Tensor) -> Tensor:
    return (feature - teacher).norm(dim=1).mean()


FUSE, SOFT = restated.fuse, restated.soft_cross_entropy
WRONG_VARIANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "gated maps to the next stage": ("enhanced_maps", feed_gated_maps_to_next_stage),
    "eps on the variance": ("standardise", add_eps_to_variance),
    "biased deviation": ("standardise", use_biased_deviation),
    "masks not averaged": ("fuse", use_own_masks),
    "maps summed": ("fuse", sum_maps),
    "no gates around a branch": ("branch", omit_gates),
    "T squared": ("soft_cross_entropy", multiply_by_t_squared),
    "norm per sample": ("distance", use_norm_per_sample),
}


@pytest.mark.parametrize("variant", WRONG_VARIANTS)
def test_wrong_variants_of_the_reference_differ(
    variant: str, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restated, *WRONG_VARIANTS[variant])
    assert difference(computed, restated.network(computed.weights, IMAGES)) > 1e-8
