"""The synthetic set: deterministic, balanced, and classifiable only by spatial features."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.data.synthetic import NUM_PATTERNS, synthetic_images


def linear_classifier_accuracy(features: Tensor, labels: Tensor) -> float:
    """Fit a linear classifier to the first half; return its accuracy on the second half."""
    half = len(labels) // 2
    scaled = (features - features[:half].mean(0)) / (features[:half].std(0) + 1e-6)
    weights = torch.zeros(features.shape[1], NUM_PATTERNS, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scaled[:half] @ weights, labels[:half]) + 1e-3 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(((scaled[half:] @ weights).argmax(1) == labels[half:]).float().mean())


@pytest.fixture(scope="module")
def images_and_labels() -> tuple[Tensor, Tensor]:
    images, labels = synthetic_images(10, 3000, seed=5)
    return torch.from_numpy(images).float(), torch.from_numpy(labels)


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    digests = [hashlib.sha256(synthetic_images(10, 50, seed=seed)[0].tobytes()).hexdigest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("num_classes", [10, 100])
def test_classes_are_balanced_and_images_are_bytes(num_classes: int) -> None:
    images, labels = synthetic_images(num_classes, 300, seed=1)
    assert images.shape == (300, 3, 32, 32)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [300 // num_classes] * num_classes


def test_colours_pixels_and_histograms_do_not_predict_the_class(images_and_labels: tuple[Tensor, Tensor]) -> None:
    """Chance is 10%. A small network learns more than 90% (tests/end_to_end)."""
    images, labels = images_and_labels
    colours = torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)
    histogram = torch.stack([((images // 32) == value).float().mean((1, 2, 3)) for value in range(8)], dim=1)
    pixels = F.avg_pool2d(images, 2).flatten(1)
    for features in (colours, histogram, pixels):
        assert linear_classifier_accuracy(features, labels) < 0.3


def test_the_energy_of_convolutions_predicts_the_class(images_and_labels: tuple[Tensor, Tensor]) -> None:
    """The same classifier uses the mean response of fixed edge filters."""
    images, labels = images_and_labels
    gray = images.mean(1, keepdim=True)
    bank = torch.randn(64, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    bank = bank - bank.mean((2, 3), keepdim=True)
    energy = F.conv2d(gray, bank).abs().mean((2, 3))
    assert linear_classifier_accuracy(energy / energy.mean(1, keepdim=True), labels) > 0.9
