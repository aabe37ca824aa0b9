"""The default FMFSD against a restatement of its description, on random weights, in fp64: outputs, loss, gradients."""

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
from tests.helpers.restated import Restated, Weights

LOSS_WEIGHTS = {"alpha": 0.3, "beta": 0.03, "temperature": 3.0}
LABELS = torch.tensor([7, 0, 99])
IMAGES = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@dataclass(frozen=True)
class Ours:
    """What our network and our loss compute from IMAGES and LABELS."""

    weights: Weights
    outputs: Outputs
    loss: Tensor
    """As it is reported."""
    gradients: Sequence[Tensor]
    """By weight, of the value that is differentiated."""


def shifted_network(backbone: str) -> Network:
    """Return a network whose parameters all differ from their initial values, gamma and beta too."""
    network = build_network(load_config("cifar100-resnet18", [f"model.backbone={backbone}"])).double().train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.3 * parameter.std()
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def run_ours(backbone: str) -> Ours:
    network, loss = shifted_network(backbone), build_loss(load_config("cifar100-resnet18"))
    outputs = network(IMAGES)
    terms = loss.terms(outputs, LABELS)
    total = loss.total(terms, terms.squares_F.detach(), world_size=1)
    weights = dict(network.named_parameters())
    gradients = torch.autograd.grad(total, list(weights.values()))
    reported = terms.label + terms.soft_target + LOSS_WEIGHTS["beta"] * terms.squares_F.sqrt().sum()
    return Ours({name: each.detach() for name, each in weights.items()}, outputs, reported, gradients)


@pytest.fixture(scope="module")
def ours() -> Ours:
    return run_ours("resnet18")


def relative_difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the largest difference of a pair of tensors, relative to the largest value in the pair's second one."""
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def difference(ours: Ours, found: Restated) -> float:
    """Compare outputs and loss."""
    mine = [*ours.outputs.logits, *ours.outputs.features, ours.outputs.deepest_feature, ours.loss]
    loss = restated.loss(found, LABELS, **LOSS_WEIGHTS)
    theirs = [*found.logits, *found.features, found.deepest_feature, loss]
    return relative_difference([*zip(mine, theirs, strict=True)])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnet8"])
def test_outputs_loss_and_gradients_are_the_restated_ones(backbone: str) -> None:
    ours = run_ours(backbone)
    weights = {name: each.clone().requires_grad_() for name, each in ours.weights.items()}
    found = restated.network(weights, IMAGES)
    assert difference(ours, found) < 1e-10
    gradients = torch.autograd.grad(restated.loss(found, LABELS, **LOSS_WEIGHTS), list(weights.values()))
    assert relative_difference([*zip(ours.gradients, gradients, strict=True)]) < 1e-8


def gated_maps_onward(weights: Weights, images: Tensor) -> list[Tensor]:
    """E_k feeds stage k + 1 in the place of F_k."""
    enhanced: list[Tensor] = []
    x = restated.stem(weights, images)
    for k in range(restated.count(weights, "gates.")):
        x = restated.sge(restated.part(weights, f"gates.{k}"), restated.stage(weights, x, k))
        enhanced.append(x)
    return enhanced


def eps_on_the_variance(agreement: Tensor) -> Tensor:
    centred = agreement - agreement.mean((2, 3), keepdim=True)
    return centred / (agreement.var((2, 3), keepdim=True) + restated.EPSILON).sqrt()


def biased_deviation(agreement: Tensor) -> Tensor:
    centred = agreement - agreement.mean((2, 3), keepdim=True)
    return centred / (agreement.std((2, 3), unbiased=False, keepdim=True) + restated.EPSILON)


def own_masks(weights: Weights, maps: Sequence[Tensor]) -> Tensor:
    gates = [restated.part(weights, f"enhancements.{i}") for i in range(len(maps))]
    return torch.stack([restated.sge(gate, each) for gate, each in zip(gates, maps, strict=True)]).mean(0)


def sum_of_maps(weights: Weights, maps: Sequence[Tensor]) -> Tensor:
    return FUSE(weights, maps) * len(maps)


def ungated_branch(weights: Weights, x: Tensor) -> Tensor:
    return restated.align(restated.part(weights, "1"), x)


def with_t_squared(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature**2 * SOFT(student, teacher, temperature)


def mean_norm_of_samples(feature: Tensor, teacher: Tensor) -> Tensor:
    return (feature - teacher).norm(dim=1).mean()


FUSE, SOFT = restated.fuse, restated.soft_cross_entropy
WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "gated maps onward": ("enhanced_maps", gated_maps_onward),
    "eps on the variance": ("standardise", eps_on_the_variance),
    "biased deviation": ("standardise", biased_deviation),
    "masks not averaged": ("fuse", own_masks),
    "maps summed": ("fuse", sum_of_maps),
    "no gates around a branch": ("branch", ungated_branch),
    "T squared": ("soft_cross_entropy", with_t_squared),
    "a norm a sample": ("distance", mean_norm_of_samples),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_restatement_differs(wrong: str, ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restated, *WRONG[wrong])
    assert difference(ours, restated.network(ours.weights, IMAGES)) > 1e-8
