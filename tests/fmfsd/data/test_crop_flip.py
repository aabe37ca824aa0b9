"""Crop, flip, cutout and normalisation of whole batches, compared with the same operations per image."""

import pytest
import torch
import torch.nn.functional as F

from fmfsd.data.augment.crop_flip_cutout import Normalise, cutout, horizontal_flip, random_crop

IMAGES = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padding", [1, 4])
def test_a_crop_is_a_window_of_the_padded_image(padding: int) -> None:
    generator = torch.Generator().manual_seed(1)
    top, left = (torch.randint(0, 2 * padding + 1, (20,), generator=generator) for _ in range(2))
    top[0], left[0], top[1], left[1] = 0, 0, 2 * padding, 2 * padding
    result = random_crop(IMAGES, top, left, padding=padding, fill=128)
    padded = F.pad(IMAGES, (padding,) * 4, value=128)
    for number, image in enumerate(padded):
        window = image[:, top[number] : top[number] + 32, left[number] : left[number] + 32]
        assert torch.equal(result[number], window)


def test_a_crop_of_images_that_are_not_square() -> None:
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).view(2, 3, 4, 6)
    centre = torch.tensor([2, 2])
    assert torch.equal(random_crop(images, centre, centre, padding=2, fill=0), images)


def test_flip_mirrors_only_the_selected_images() -> None:
    mirrored = torch.arange(20) % 3 == 0
    result = horizontal_flip(IMAGES, mirrored)
    assert torch.equal(result[mirrored], IMAGES[mirrored].flip(-1))
    assert torch.equal(result[~mirrored], IMAGES[~mirrored])


@pytest.mark.parametrize("side", [1, 8, 16])
def test_cutout_blackens_a_clipped_square(side: int) -> None:
    row, column = torch.tensor([0, 16, 31]), torch.tensor([5, 16, 31])
    result = cutout(IMAGES[:3], row, column, side=side)
    for number in range(3):
        top, left = int(row[number]) - side // 2, int(column[number]) - side // 2
        expected = IMAGES[number].clone()
        expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
        assert torch.equal(result[number], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_are_scaled_to_fractions_and_normalised(dtype: torch.dtype) -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    result = Normalise(mean, std, dtype, torch.device("cpu"))(IMAGES)
    assert result.dtype == dtype
    shape = (3, 1, 1)
    expected = (IMAGES.double() / 255 - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(
        shape
    )
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
