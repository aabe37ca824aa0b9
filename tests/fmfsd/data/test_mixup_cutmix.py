"""MixUp and CutMix: shares of the right distribution, partners from the shard, and pixels and labels that follow."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fmfsd.data.augment.mixup_cutmix import mixed, mixing_draws, shares, symmetric_beta


def words(samples: int) -> NDArray[np.uint64]:
    return np.random.Philox(key=np.array([3, 4], np.uint64)).random_raw(2 * samples).reshape(samples, 2)


CLOSED_FORMS = {
    0.5: lambda x: 2 / math.pi * np.arcsin(np.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: x**2 * (3 - 2 * x),
    3.0: lambda x: x**3 * (10 - 15 * x + 6 * x**2),
}


@pytest.mark.parametrize("alpha", CLOSED_FORMS)
def test_equally_likely_parts_of_beta_are_those_of_its_closed_form(alpha: float) -> None:
    found = CLOSED_FORMS[alpha](symmetric_beta(alpha))
    assert found == pytest.approx((np.arange(1 << 16) + 0.5) / (1 << 16), abs=1e-8)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 8.0, 100.0])
def test_draws_are_distributed_like_numpys_beta(alpha: float) -> None:
    """Kolmogorov-Smirnov: two samples of 200,000 differ by 0.0062 once in a thousand times. To six digits: what is
    nearer to 0 or 1, as 3% of all for 0.1, makes no pixel."""
    ours = np.sort(mixing_draws(words(200_000), mixup=alpha, cutmix=0, side=32)["share"].round(6))
    theirs = np.sort(np.random.default_rng(0).beta(alpha, alpha, 200_000).round(6))
    both = np.concatenate([ours, theirs])
    ranks = [np.searchsorted(each, both, side="right") / 200_000 for each in (ours, theirs)]
    assert np.abs(ranks[0] - ranks[1]).max() < 0.0062


def test_a_partner_is_another_sample_of_the_shard_and_any_of_them() -> None:
    partner = mixing_draws(words(20_000), mixup=1, cutmix=0, side=32)["partner"]
    assert (partner != np.arange(20_000)).all()
    assert np.histogram(partner, bins=10, range=(0, 20_000))[0] == pytest.approx(2_000, rel=0.1)
    assert mixing_draws(words(2), mixup=1, cutmix=0, side=32)["partner"].tolist() == [1, 0]
    assert mixing_draws(words(1), mixup=1, cutmix=0, side=32)["partner"].tolist() == [0]


def test_a_pasted_rectangle_has_the_share_that_the_label_loses() -> None:
    draws = mixing_draws(words(5_000), mixup=0, cutmix=1.0, side=32)
    area = (draws["lower"] - draws["upper"]) * (draws["right_edge"] - draws["left_edge"])
    assert (1 - draws["share"]) * 32**2 == pytest.approx(area)
    assert (draws["blend"] == 1).all()
    assert {int(draws[name].min()) for name in ("upper", "left_edge")} == {0}
    assert {int(draws[name].max()) for name in ("lower", "right_edge")} == {32}


def test_with_both_a_coin_chooses_for_each_sample() -> None:
    draws = mixing_draws(words(10_000), mixup=1.0, cutmix=1.0, side=32)
    pasted = draws["lower"] > draws["upper"]
    assert (draws["blend"] == 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (draws["blend"][pasted] == 1).all()
    assert (draws["share"][draws["blend"] < 1] == draws["blend"][draws["blend"] < 1]).all()


def test_pixels_and_labels_follow_the_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    draws = {
        "blend": torch.tensor([0.25, 1.0]),
        "upper": torch.tensor([0, 1]),
        "lower": torch.tensor([0, 4]),
        "left_edge": torch.tensor([0, 2]),
        "right_edge": torch.tensor([0, 6]),
    }
    found = mixed(own, other, draws)
    torch.testing.assert_close(found[0], 0.25 * own[0] + 0.75 * other[0])
    expected = own[1].clone()
    expected[:, 1:4, 2:6] = other[1, :, 1:4, 2:6]
    assert torch.equal(found[1], expected)
    labels = shares(torch.tensor([2, 1]), torch.tensor([0, 1]), torch.tensor([0.25, 0.5]), num_classes=3)
    assert labels.tolist() == [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]
