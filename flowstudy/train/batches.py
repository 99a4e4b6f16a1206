"""Which samples a step sees: every batch of an epoch of one shape, so that all steps are the same program."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 4  # batches are padded to a multiple of it: matrix rows of 16 bytes, and sums that place cannot change


class Batches(NamedTuple):
    """The steps of an epoch.

    Attributes:
        index: of the samples.
        weight: of each in the mean over its batch; 0 for the padding that makes all batches of one size.
    """

    index: Int[Tensor, "step sample"]
    weight: Float[Tensor, "step sample"]

    def __len__(self) -> int:
        return len(self.index)

    def part(self, first: int, last: int) -> "Batches":
        return Batches(self.index[first:last], self.weight[first:last])


def batches(samples: int, batch_size: int, order_seed: int, epoch: int) -> Batches:
    """Every sample once, in an order that depends on the seed and the epoch alone, on every device."""
    generator = torch.Generator().manual_seed((order_seed * 1_000_003 + epoch) % 2**63)
    return in_batches(torch.randperm(samples, generator=generator), batch_size)


def in_batches(order: Int[Tensor, " sample"] | int, batch_size: int) -> Batches:
    """The samples (or the first so many) in this order; the last batch holds the rest, and its mean is over those."""
    order = torch.arange(order) if isinstance(order, int) else order
    samples = len(order)
    size = min(batch_size, samples)
    steps = -(-samples // size)
    padded = padded_size(size)
    index = torch.zeros(steps, padded, dtype=torch.int64)
    weight = torch.zeros(steps, padded, dtype=torch.float64)
    index[:, :size] = torch.nn.functional.pad(order, (0, steps * size - samples)).view(steps, size)
    weight[:, :size] = 1 / size
    rest = samples - (steps - 1) * size
    weight[-1] = 0
    weight[-1, :rest] = 1 / rest
    return Batches(index, weight)


def padded_size(batch_size: int) -> int:
    return -(-batch_size // ROWS) * ROWS
