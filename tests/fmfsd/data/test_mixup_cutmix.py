"""MixUp and CutMix: distribution of the shares, partners from the same shard, and mixed pixels and labels."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fmfsd.data.augment.mixup_cutmix import beta_quantiles, draw_mixing, mix_images, mix_labels


def random_words(samples: int) -> NDArray[np.uint64]:
    return np.random.Philox(key=np.array([3, 4], np.uint64)).random_raw(2 * samples).reshape(samples, 2)


CUMULATIVE_DISTRIBUTIONS = {
    0.5: lambda x: 2 / math.pi * np.arcsin(np.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: x**2 * (3 - 2 * x),
    3.0: lambda x: x**3 * (10 - 15 * x + 6 * x**2),
}


@pytest.mark.parametrize("alpha", CUMULATIVE_DISTRIBUTIONS)
def test_quantiles_of_beta_agree_with_its_closed_form(alpha: float) -> None:
    probabilities = CUMULATIVE_DISTRIBUTIONS[alpha](beta_quantiles(alpha))
    assert probabilities == pytest.approx((np.arange(1 << 16) + 0.5) / (1 << 16), abs=1e-8)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 8.0, 100.0])
def test_draws_are_distributed_like_numpys_beta(alpha: float) -> None:
    """Kolmogorov-Smirnov test: two samples of 200,000 differ by more than 0.0062 with a probability of 1/1000.

    Draws are rounded to six digits: smaller differences from 0 or 1 (3% of the draws for 0.1) change no pixel.
    """
    ours = np.sort(draw_mixing(random_words(200_000), mixup=alpha, cutmix=0, side=32)["share"].round(6))
    numpys = np.sort(np.random.default_rng(0).beta(alpha, alpha, 200_000).round(6))
    both = np.concatenate([ours, numpys])
    ranks = [np.searchsorted(each, both, side="right") / 200_000 for each in (ours, numpys)]
    assert np.abs(ranks[0] - ranks[1]).max() < 0.0062


def test_partners_are_uniform_over_the_other_samples_of_the_shard() -> None:
    partner = draw_mixing(random_words(20_000), mixup=1, cutmix=0, side=32)["partner"]
    assert (partner != np.arange(20_000)).all()
    assert np.histogram(partner, bins=10, range=(0, 20_000))[0] == pytest.approx(2_000, rel=0.1)
    assert draw_mixing(random_words(2), mixup=1, cutmix=0, side=32)["partner"].tolist() == [1, 0]
    assert draw_mixing(random_words(1), mixup=1, cutmix=0, side=32)["partner"].tolist() == [0]


def test_the_area_of_a_pasted_rectangle_is_the_share_of_its_label() -> None:
    draws = draw_mixing(random_words(5_000), mixup=0, cutmix=1.0, side=32)
    area = (draws["lower"] - draws["upper"]) * (draws["right_edge"] - draws["left_edge"])
    assert (1 - draws["share"]) * 32**2 == pytest.approx(area)
    assert (draws["blend"] == 1).all()
    assert {int(draws[name].min()) for name in ("upper", "left_edge")} == {0}
    assert {int(draws[name].max()) for name in ("lower", "right_edge")} == {32}


def test_with_both_each_sample_uses_mixup_or_cutmix_with_equal_probability() -> None:
    draws = draw_mixing(random_words(10_000), mixup=1.0, cutmix=1.0, side=32)
    pasted = draws["lower"] > draws["upper"]
    assert (draws["blend"] == 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (draws["blend"][pasted] == 1).all()
    assert (draws["share"][draws["blend"] < 1] == draws["blend"][draws["blend"] < 1]).all()


def test_pixels_and_labels_follow_the_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    draws = {
        "blend": torch.tensor([0.25, 1.0]),
        "upper": torch.tensor([0, 1]),
        "lower": torch.tensor([0, 4]),
        "left_edge": torch.tensor([0, 2]),
        "right_edge": torch.tensor([0, 6]),
    }
    result = mix_images(first, second, draws)
    torch.testing.assert_close(result[0], 0.25 * first[0] + 0.75 * second[0])
    expected = first[1].clone()
    expected[:, 1:4, 2:6] = second[1, :, 1:4, 2:6]
    assert torch.equal(result[1], expected)
    labels = mix_labels(torch.tensor([2, 1]), torch.tensor([0, 1]), torch.tensor([0.25, 0.5]), num_classes=3)
    assert labels.tolist() == [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]
