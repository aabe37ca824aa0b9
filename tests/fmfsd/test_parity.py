"""The default FMFSD against a restatement of its description in NumPy, on random weights, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fmfsd.config import load_config
from fmfsd.model.build import build_network
from fmfsd.model.network import Network, Outputs
from fmfsd.trainer import build_loss
from tests.helpers import restated
from tests.helpers.restated import Array, Found, Weights

CONFIG = load_config("cifar100-resnet18")
WEIGHTS = {"alpha": 0.3, "beta": 0.03, "temperature": 3.0}
LABELS = torch.tensor([7, 0, 99])
STEP = 1e-30
"""Of a complex step: nothing is subtracted, so it may be as small as it likes."""


@pytest.fixture(scope="module")
def network() -> Network:
    """Every parameter away from its initial value, gamma and beta too."""
    made = build_network(CONFIG).double().train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.3 * parameter.std()
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def outputs(network: Network, images: Tensor) -> Outputs:
    return network(images)


@pytest.fixture(scope="module")
def total(outputs: Outputs) -> Tensor:
    """The loss as it is differentiated: in the place of sqrt(S) stands S / (2 sqrt(S)), which has its gradient."""
    terms = build_loss(CONFIG).terms(outputs, LABELS)
    return build_loss(CONFIG).total(terms, terms.squares_F.detach(), world_size=1)


def value(outputs: Outputs) -> float:
    """The loss as it is reported."""
    terms = build_loss(CONFIG).terms(outputs, LABELS)
    return (terms.label + terms.soft_target + WEIGHTS["beta"] * terms.squares_F.sqrt().sum()).item()


def arrays(network: Network) -> Weights:
    return {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}


def restated_run(network: Network, images: Tensor) -> tuple[Found, Any]:
    found = restated.network(arrays(network), images.numpy())
    return found, restated.loss(found, LABELS.numpy(), teacher=found, **WEIGHTS)


def difference(outputs: Outputs, found: Found, loss: Any) -> float:
    """The largest, relative to the largest value of an output."""
    ours = [*outputs.logits, *outputs.features, outputs.deepest_feature]
    theirs = [*found.logits, *found.features, found.deepest_feature]
    pairs = [(one.detach().numpy(), other) for one, other in zip(ours, theirs, strict=True)]
    pairs.append((np.array(value(outputs)), np.array(loss)))
    return max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)


def test_outputs_and_loss_are_the_restated_ones(network: Network, images: Tensor, outputs: Outputs) -> None:
    assert (len(outputs.logits), len(outputs.features)) == (4, 2)
    assert difference(outputs, *restated_run(network, images)) < 1e-10


def test_the_gradient_is_the_restated_losses_with_its_teacher_held_fixed(
    network: Network, images: Tensor, total: Tensor
) -> None:
    """Along one random direction of all parameters, by a complex step; every parameter has a part in it."""
    rng, weights = np.random.default_rng(5), arrays(network)
    direction = {name: rng.standard_normal(each.shape) * np.abs(each).mean() for name, each in weights.items()}
    gradients = torch.autograd.grad(total, list(network.parameters()), retain_graph=True)
    named = zip(weights, gradients, strict=True)
    expected = sum((gradient.numpy() * direction[name]).sum() for name, gradient in named)
    moved = {name: each + 1j * STEP * direction[name] for name, each in weights.items()}
    teacher = restated.network(weights, images.numpy())
    found = restated.network(moved, images.numpy())
    along = restated.loss(found, LABELS.numpy(), teacher=teacher, **WEIGHTS).imag / STEP
    assert along == pytest.approx(expected, rel=1e-9)


def eps_on_the_variance(agreement: Array) -> Array:
    centred = agreement - agreement.mean((2, 3), keepdims=True)
    return centred / np.sqrt(agreement.var((2, 3), ddof=1, keepdims=True) + restated.EPSILON)


def biased_deviation(agreement: Array) -> Array:
    centred = agreement - agreement.mean((2, 3), keepdims=True)
    return centred / (agreement.std((2, 3), keepdims=True) + restated.EPSILON)


def own_masks(weights: Weights, maps: list[Array]) -> Array:
    masks = [restated.mask(restated.part(weights, f"enhancements.{number}"), each) for number, each in enumerate(maps)]
    masked = [restated.spread(mask, each) * each for mask, each in zip(masks, maps, strict=True)]
    return np.mean(masked, axis=0)


def sum_of_maps(weights: Weights, maps: list[Array]) -> Array:
    return FUSED(weights, maps) * len(maps)


def ungated(weights: Weights, x: Array) -> Array:
    return restated.way(restated.part(weights, "1"), x)


def with_t_squared(student: Array, teacher: Array, temperature: float) -> Any:
    return temperature**2 * SOFT(student, teacher, temperature)


def mean_norm(feature: Array, teacher: Array) -> Any:
    return np.sqrt(((feature - teacher) ** 2).sum(1)).mean()


FUSED, SOFT = restated.fused, restated.soft_cross_entropy
WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "eps on the variance": ("standardised", eps_on_the_variance),
    "biased deviation": ("standardised", biased_deviation),
    "masks not averaged": ("fused", own_masks),
    "maps summed": ("fused", sum_of_maps),
    "no gates around a branch": ("branch", ungated),
    "T squared": ("soft_cross_entropy", with_t_squared),
    "a norm a sample": ("distance", mean_norm),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_restatement_is_told_apart(
    wrong: str, network: Network, images: Tensor, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restated, *WRONG[wrong])
    assert difference(outputs, *restated_run(network, images)) > 1e-8
