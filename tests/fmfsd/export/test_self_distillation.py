"""The method around a user's network: the loss's value and gradient, on one worker and several, and what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fmfsd import SelfDistillation
from fmfsd.distributed.collectives import Comms
from fmfsd.errors import ConfigError
from tests.helpers import restated
from tests.helpers.restated import Restated
from tests.helpers.workers import run_workers

BATCH, SIZE = 8, 16


class SmallNetwork(nn.Module):
    """Three convolutions, each with half the side of the one before, and no classifier."""

    def __init__(self) -> None:
        super().__init__()
        for number, (channels_in, channels) in enumerate([(3, 8), (8, 16), (16, 16)], 1):
            layers = (nn.Conv2d(channels_in, channels, 3, 2, padding=1), nn.BatchNorm2d(channels), nn.Tanh())
            self.add_module(f"stage{number}", nn.Sequential(*layers))

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.children():
            images = stage(images)
        return images


def wrapped(**changes: Any) -> SelfDistillation:
    torch.manual_seed(0)
    values = {"branches": ["stage1", "stage2"], "deepest": "stage3", "num_classes": 4, "size": SIZE, "beta": 0.5}
    return SelfDistillation(SmallNetwork(), **{**values, **changes}).double()


def frozen_statistics(model: nn.Module) -> nn.Module:
    """Train mode, but for batch norm, whose statistics would be those of each worker's part of the batch."""
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 4, (BATCH,), generator=generator)


def loss_by_hand(model: SelfDistillation, images: Tensor, labels: Tensor) -> Tensor:
    outputs = model.network(images)
    found = Restated(outputs.logits, outputs.features, outputs.deepest_feature)
    return restated.loss(found, labels, alpha=0.3, beta=0.5, temperature=3.0)


def test_the_loss_has_the_value_and_the_gradient_of_the_method() -> None:
    model, (images, labels) = wrapped(), batch()
    found, expected = model.loss(images, labels), loss_by_hand(model, images, labels)
    torch.testing.assert_close(found, expected)
    parameters = [each for each in model.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(found, parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters), rtol=1e-10, atol=1e-12)


class LossModule(nn.Module):
    """What DistributedDataParallel wraps: a module whose forward pass ends with the loss."""

    def __init__(self, model: SelfDistillation) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.model.loss(images, labels)


def train_on_a_part(comms: Comms) -> tuple[float, dict[str, list[float]]]:
    """Return this worker's loss, and the gradients that DistributedDataParallel leaves."""
    module = frozen_statistics(LossModule(wrapped()))
    images, labels = (each.chunk(comms.size)[comms.rank] for each in batch())
    trained = DistributedDataParallel(module) if comms.size > 1 else module
    loss = trained(images, labels)
    loss.backward()
    return loss.item(), {name: each.grad.tolist() for name, each in module.named_parameters() if each.grad is not None}


@pytest.mark.usefixtures("processes")
def test_two_workers_have_the_loss_and_the_gradients_of_one() -> None:
    ((loss, gradients),) = run_workers(train_on_a_part, 1)
    (one_loss, found), (other_loss, again) = run_workers(train_on_a_part, 2)
    assert (one_loss + other_loss) / 2 == pytest.approx(loss, rel=1e-12)
    assert found == again
    assert found.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16])
def test_labels_may_be_of_any_integer_type(kind: torch.dtype) -> None:
    model, (images, labels) = wrapped(), batch()
    assert torch.equal(model.loss(images, labels.to(kind)), model.loss(images, labels))


def test_labels_may_be_shares() -> None:
    model, (images, labels) = wrapped(), batch()
    torch.testing.assert_close(model.loss(images, F.one_hot(labels, 4).double()), model.loss(images, labels))


def test_one_image_with_maps_of_one_pixel_is_refused_with_a_way_out() -> None:
    model, (images, labels) = wrapped(size=8), batch()
    with pytest.raises(
        ValueError, match=r"batch size 1, feature maps of 1x1 pixels .*; use two or more images, larger"
    ):
        model.loss(images[:1, :, :8, :8], labels[:1])
    assert model.loss(images[:2, :, :8, :8], labels[:2]).isfinite()
    assert model.eval().loss(images[:1, :, :8, :8], labels[:1]).isfinite()


WRONG: dict[str, dict[str, Any]] = {
    "branches: stage1 is named 2 times: name each submodule once": {"branches": ["stage1", "stage1", "stage2"]},
    "branches: stage3 is also the deepest submodule: choose a submodule before it": {"branches": ["stage1", "stage3"]},
    "branches: empty: name one or more submodules before the deepest": {"branches": []},
    "alpha: 1.5 is out of range: expected from 0 to 1": {"alpha": 1.5},
    "beta: -1 is out of range: expected 0 or more, and finite": {"beta": -1},
    "temperature: 0 is out of range: expected above 0, and finite": {"temperature": 0},
    "temperature: nan is out of range: expected above 0, and finite": {"temperature": float("nan")},
    "num_classes: 0 is out of range: expected 1 or more": {"num_classes": 0},
    "size: 0 is out of range: expected 1 or more": {"size": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused_at_construction(message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wrapped(**WRONG[message])
    assert str(caught.value) == message


def test_wrong_arguments_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        wrapped(alpha=2, temperature=0, branches=["stage3"])
    assert [problem.where for problem in caught.value.problems] == ["branches", "alpha", "temperature"]
