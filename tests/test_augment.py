"""Crops and mirrors are slices and flips; contrast normalisation has its mean and norm."""

import pytest
import torch
from scipy import stats
from torch.nn import functional as F
from torch.testing import assert_close

from flowstudy.data import Dataset
from flowstudy.data.augment import (
    Crops,
    contrast_and_mean,
    contrast_normalised,
    cropped,
    pixels_over_256,
    random_crops,
)


def images(samples: int = 40) -> torch.Tensor:
    return torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_crop_is_a_slice_and_mirror_a_flip(device):
    """One by one, by padding and slicing; bit for bit."""
    x = images().to(device)
    crops = random_crops(len(x), torch.Generator(device).manual_seed(1))
    assert crops.mirrored.any() and not crops.mirrored.all()
    for image, result, row, column, mirrored in zip(x, cropped(x, crops), *(c.tolist() for c in crops), strict=True):
        window = F.pad(image, [8, 8, 8, 8])[:, row:row + 32, column:column + 32]
        assert torch.equal(result, window.flip(-1) if mirrored else window)


def test_centre_is_the_image_itself():
    """Offset 8, 8 undoes the padding; other image shapes too."""
    x = torch.rand(2, 1, 5, 7)
    middle = torch.full((2,), 8)
    assert torch.equal(cropped(x, Crops(middle, middle, torch.zeros(2, dtype=torch.bool))), x)


def test_same_seed_same_crops():
    one, same, other = (random_crops(100, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, one, same)) and not any(map(torch.equal, one, other))


def test_offsets_are_uniform_and_independent():
    """0..16 in each direction, all 17 x 17 x 2 outcomes alike: chi-squared, p > 1e-4 (the seed is fixed)."""
    row, column, mirrored = random_crops(200_000, torch.Generator().manual_seed(0))
    assert (row.min(), row.max(), column.min(), column.max()) == (0, 16, 0, 16)
    cells = torch.bincount((row * 17 + column) * 2 + mirrored, minlength=17 * 17 * 2)
    assert stats.chisquare(cells.numpy()).pvalue > 1e-4


def test_contrast_normalised_images_have_mean_0_and_norm_55():
    """Whatever brightness and contrast the image had; a constant image has none, and becomes 0."""
    x = images()
    y = contrast_normalised(x)
    assert_close(y.mean((1, 2, 3)), torch.zeros(len(x)), rtol=0, atol=1e-5)
    assert_close(y.flatten(1).norm(dim=1), torch.full((len(x),), 55.0), rtol=1e-5, atol=0)
    assert_close(contrast_normalised(0.2 + 0.3 * x), y, rtol=0, atol=1e-4)
    assert not contrast_normalised(torch.full((1, 3, 32, 32), 0.7)).any()


def test_inputs_of_the_authors():
    """Pixels / 256 where a data set has pixels / 255; the training set's mean image is taken from both parts."""
    x, y = images(), torch.zeros(40, dtype=torch.int64)
    data = Dataset("made up", x, y, x[:5], y[:5], 10)
    assert_close(pixels_over_256(data).x_test * 256, x[:5] * 255)
    ready = contrast_and_mean(data)
    assert_close(ready.x_train.mean(0), torch.zeros(3, 32, 32), rtol=0, atol=1e-6)
    assert torch.equal(ready.x_test, ready.x_train[:5])


@pytest.mark.parametrize("samples", [1, 7])
def test_chosen_samples_keep_their_crops(samples):
    """The crops of a batch are those that the epoch drew for its samples."""
    x = images()
    crops, index = random_crops(len(x), torch.Generator().manual_seed(0)), torch.arange(40).flip(0)[:samples]
    assert torch.equal(cropped(x[index], crops.of(index)), cropped(x, crops)[index])
