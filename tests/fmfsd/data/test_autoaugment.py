"""AutoAugment of a whole batch equals torchvision's bit for bit on each image; its policy is the published one."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import AutoAugment as Reference
from torchvision.transforms.autoaugment import _apply_op

from fmfsd.data.augment.autoaugment import AutoAugment, AutoAugmentSchedule
from fmfsd.data.augment.autoaugment_policy import FIRST_OF_KIND, KINDS, OPERATIONS, POLICY, draw_operations

CPU = torch.device("cpu")
REFERENCE = Reference(AutoAugmentPolicy.CIFAR10, fill=[128.0])


def images(side: int) -> Tensor:
    """Return images with noise, a ramp, few levels, dark or bright noise, one value, and one different pixel."""
    generator = torch.Generator().manual_seed(side)
    noise = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=generator)
    ramp = torch.arange(3 * side * side).view(1, 3, side, side).remainder(256).to(torch.uint8)
    variants = [noise, ramp, noise[:1] // 64 * 64, noise[:1] // 8, 200 + noise[:1] // 5, torch.full_like(ramp, 77)]
    variants.append(torch.full_like(ramp, 9).index_fill(3, torch.tensor([1]), 250))
    return torch.cat(variants)


def apply_by_torchvision(image: Tensor, number: int) -> Tensor:
    name, level, sign = OPERATIONS[number]
    if name == "Nothing":
        return image
    magnitudes, signed = REFERENCE._augmentation_space(10, (image.shape[-2], image.shape[-1]))[name]
    magnitude = float(magnitudes[level].item()) if magnitudes.ndim else 0.0
    assert signed or sign == 1
    return _apply_op(image, name, sign * magnitude, interpolation=InterpolationMode.NEAREST, fill=[128.0])


@pytest.mark.parametrize("side", [32, 57])
def test_every_operation_equals_torchvisions_bit_for_bit(side: int) -> None:
    """One batch contains all operations, in random order."""
    source_images = images(side)
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(len(OPERATIONS)), len(source_images)))
    batch = source_images[torch.arange(len(numbers)) % len(source_images)]
    augment = AutoAugment(side, fill=128, device=CPU)
    results = augment(batch.clone(), AutoAugmentSchedule.from_operations(numbers[None], CPU), 0)
    for image, result, number in zip(batch, results, numbers, strict=True):
        assert torch.equal(result, apply_by_torchvision(image, number)), OPERATIONS[number]


def test_every_sub_policy_is_that_of_torchvision() -> None:
    published = [tuple((name, chance, level or 0) for name, chance, level in steps) for steps in REFERENCE.policies]
    assert list(POLICY) == published
    assert sorted(name for names in KINDS.values() for name in names if name != "Nothing") == sorted(
        {name for steps in POLICY for name, _, _ in steps}
    )
    assert [OPERATIONS[first].name in KINDS[kind] for kind, first in FIRST_OF_KIND.items()] == [True] * len(KINDS)


def test_sub_policies_steps_and_signs_are_drawn_with_the_right_frequencies() -> None:
    random_words = np.random.Philox(key=np.array([1, 2], np.uint64)).random_raw(400_000)
    observed = [Counter(numbers.tolist()) for numbers in draw_operations(random_words)]
    expected: list[Counter[int]] = [Counter(), Counter()]
    for steps in POLICY:
        for step, (name, chance, level) in enumerate(steps):
            variants = [n for n, operation in enumerate(OPERATIONS) if operation[:2] == (name, level)]
            for number in variants:
                expected[step][number] += 400_000 / 25 * chance / len(variants)  # type: ignore[assignment]
            expected[step][0] += 400_000 / 25 * (1 - chance)  # type: ignore[assignment]
    for counts, expected_counts in zip(observed, expected, strict=True):
        assert counts.keys() == {number for number, count in expected_counts.items() if count}
        for number, count in counts.items():
            assert count == pytest.approx(expected_counts[number], abs=5 * expected_counts[number] ** 0.5)
