"""The method around a user's network: value and gradient of the loss on one or more workers, and wrong arguments."""

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
from tests.helpers.restated import ReferenceOutputs
from tests.helpers.workers import run_workers

BATCH, SIZE = 8, 16


class SmallNetwork(nn.Module):
    """Three convolutions with stride 2, without a classifier."""

    def __init__(self) -> None:
        super().__init__()
        for number, (channels_in, channels) in enumerate([(3, 8), (8, 16), (16, 16)], 1):
            layers = (nn.Conv2d(channels_in, channels, 3, 2, padding=1), nn.BatchNorm2d(channels), nn.Tanh())
            self.add_module(f"stage{number}", nn.Sequential(*layers))

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.children():
            images = stage(images)
        return images


def wrap(**changes: Any) -> SelfDistillation:
    torch.manual_seed(0)
    values = {"branches": ["stage1", "stage2"], "deepest": "stage3", "num_classes": 4, "size": SIZE, "beta": 0.5}
    return SelfDistillation(SmallNetwork(), **{**values, **changes}).double()


def freeze_batch_norm(model: nn.Module) -> nn.Module:
    """Set train mode, except for batch norm, whose statistics would depend on each worker's part of the batch."""
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 4, (BATCH,), generator=generator)


def reference_loss(model: SelfDistillation, images: Tensor, labels: Tensor) -> Tensor:
    outputs = model.network(images)
    reference = ReferenceOutputs(outputs.logits, outputs.features, outputs.deepest_feature)
    return restated.loss(reference, labels, alpha=0.3, beta=0.5, temperature=3.0)


def test_loss_and_gradients_equal_those_of_the_reference() -> None:
    model, (images, labels) = wrap(), batch()
    loss, expected = model.loss(images, labels), reference_loss(model, images, labels)
    torch.testing.assert_close(loss, expected)
    parameters = [each for each in model.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters), rtol=1e-10, atol=1e-12)


class LossModule(nn.Module):
    """A module for DistributedDataParallel whose forward pass returns the loss."""

    def __init__(self, model: SelfDistillation) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.model.loss(images, labels)


def train_on_a_part(comms: Comms) -> tuple[float, dict[str, list[float]]]:
    """Return this worker's loss, and the gradients after DistributedDataParallel's all-reduce."""
    module = freeze_batch_norm(LossModule(wrap()))
    images, labels = (each.chunk(comms.size)[comms.rank] for each in batch())
    replica = DistributedDataParallel(module) if comms.size > 1 else module
    loss = replica(images, labels)
    loss.backward()
    return loss.item(), {name: each.grad.tolist() for name, each in module.named_parameters() if each.grad is not None}


@pytest.mark.usefixtures("processes")
def test_two_workers_have_the_loss_and_the_gradients_of_one() -> None:
    ((loss, gradients),) = run_workers(train_on_a_part, 1)
    (one_loss, one_gradients), (other_loss, other_gradients) = run_workers(train_on_a_part, 2)
    assert (one_loss + other_loss) / 2 == pytest.approx(loss, rel=1e-12)
    assert one_gradients == other_gradients
    assert one_gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(torch.tensor(one_gradients[name]), torch.tensor(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    model, (images, labels) = wrap(), batch()
    assert torch.equal(model.loss(images, labels.to(dtype)), model.loss(images, labels))


def test_labels_may_be_class_probabilities() -> None:
    model, (images, labels) = wrap(), batch()
    torch.testing.assert_close(model.loss(images, F.one_hot(labels, 4).double()), model.loss(images, labels))


def test_one_image_with_maps_of_one_pixel_is_an_error_with_a_remedy() -> None:
    model, (images, labels) = wrap(size=8), batch()
    with pytest.raises(ValueError, match=r"batch size 1, feature maps of 1x1 pixels .*; use two or more images, l"):
        model.loss(images[:1, :, :8, :8], labels[:1])
    assert model.loss(images[:2, :, :8, :8], labels[:2]).isfinite()
    assert model.eval().loss(images[:1, :, :8, :8], labels[:1]).isfinite()


WRONG_ARGUMENTS: dict[str, dict[str, Any]] = {
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


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments_are_errors_at_construction(message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wrap(**WRONG_ARGUMENTS[message])
    assert str(caught.value) == message


def test_all_wrong_arguments_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        wrap(alpha=2, temperature=0, branches=["stage3"])
    assert [problem.where for problem in caught.value.problems] == ["branches", "alpha", "temperature"]
