"""Preparation of images as for the paper's convolutional nets: scaling, contrast normalisation, crops and mirroring."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from .datasets import Dataset

PADDING = 8    # pixels of zeros on each side
SCALE = 55.0   # norm of a contrast-normalised image: 0.99 per pixel and channel of 3 x 32 x 32

Images = Float[Tensor, "sample channel height width"]


class Crops(NamedTuple):
    """For each sample, the corner of its window in the padded image, and whether it is mirrored left to right."""

    row: Int64[Tensor, " sample"]
    column: Int64[Tensor, " sample"]
    mirrored: Bool[Tensor, " sample"]

    def of(self, index: Int64[Tensor, " chosen"]) -> "Crops":
        return Crops(self.row[index], self.column[index], self.mirrored[index])

    def to(self, device: torch.device) -> "Crops":
        return Crops(*(each.to(device) for each in self))


def random_crops(samples: int, generator: torch.Generator) -> Crops:
    """Offsets uniform over 0..16 in both directions, half of the samples mirrored; on the generator's device."""
    device = generator.device
    row, column = torch.randint(2 * PADDING + 1, (2, samples), generator=generator, device=device)
    return Crops(row, column, torch.randint(2, (samples,), generator=generator, device=device).bool())


def cropped(x: Images, crops: Crops) -> Images:
    """Each image padded with zeros, its own window of the old size cut out, mirrored where asked: one gather."""
    samples, channels, height, width = x.shape
    across = torch.arange(width, device=x.device)
    rows = crops.row[:, None] + torch.arange(height, device=x.device)
    columns = crops.column[:, None] + torch.where(crops.mirrored[:, None], across.flip(0), across)
    sample = torch.arange(samples, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return F.pad(x, [PADDING] * 4)[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def contrast_normalised(x: Images, scale: float = SCALE) -> Images:
    """Each image less its mean, over its norm, times `scale`; a constant image becomes 0.

    The paper names the method only. Scale 55 and nothing added to the norm are Maxout's choice (Goodfellow et al. 2013,
    pylearn2's `CIFAR10(gcn=55.)`), whose preprocessed images many nets of the paper's tables used.
    """
    centred = x - x.mean((1, 2, 3), keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True)
    # One pixel off by one grey level has norm 4e-3, the rounding errors of a constant image's mean 1e-5.
    return centred * torch.where(norm > 1e-3, scale / norm, 0.0)


def pixels_over_256(data: Dataset) -> Dataset:
    """Pixels / 256, as the authors' MNIST files say (`scale: 0.00390625`); a Dataset has pixels / 255."""
    return replace(data, x_train=data.x_train * (255 / 256), x_test=data.x_test * (255 / 256))


def contrast_and_mean(data: Dataset) -> Dataset:
    """Contrast-normalised, less the mean image of the training set, as in the authors' CIFAR files.

    They subtract the mean of the padded images, which in the padding is 0: so we pad after that.
    """
    train, test = contrast_normalised(data.x_train), contrast_normalised(data.x_test)
    mean = train.mean(0)
    return replace(data, x_train=train - mean, x_test=test - mean)


INPUTS: dict[str, Callable[[Dataset], Dataset]] = {"pixels_over_256": pixels_over_256,
                                                   "contrast_and_mean": contrast_and_mean}
