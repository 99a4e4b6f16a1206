"""A training step of the paper's convolutional nets."""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from flowstudy.data import Dataset
from flowstudy.nets import initialize_as_authors
from flowstudy.train import CIFAR_RECIPE, CONV_NETS, MNIST_RECIPE, Recipe, train_conv

from .parts import Sizes
from .record import Record

BATCH = MNIST_RECIPE.batch_size


def conv_steps(device: torch.device, sizes: Sizes, record: Record) -> Iterator[dict]:
    """ms a step, crops and dropout included."""
    for net, shape, recipe in (("mnist_16", (1, 28, 28), MNIST_RECIPE), ("A", (3, 32, 32), CIFAR_RECIPE)):
        for block in ("highway", "plain"):
            ms = ms_a_step_of(net, block, shape, recipe, device, sizes.conv_batches)
            yield {"net": net, "block": block, "batch": BATCH, "ms a step": ms}


def ms_a_step_of(net: str, block: str, shape: tuple[int, ...], recipe: Recipe, device: torch.device,
                 batches: int) -> float:
    """From the difference of two trainings whose epochs have one batch and some more: what is captured and evaluated is
    the same in both.  A first one, whose time does not count, starts the device's libraries."""
    _, few, many = (seconds_of_epochs(net, block, shape, replace(recipe, epochs=2), BATCH * some, device)
                    for some in (1, 1, 1 + batches))
    return 1e3 * (many - few) / (2 * batches)


def seconds_of_epochs(net: str, block: str, shape: tuple[int, ...], recipe: Recipe, samples: int,
                      device: torch.device) -> float:
    made = initialize_as_authors(CONV_NETS[net](block=block), 0).to(device)
    x, y = torch.rand(samples, *shape, device=device), torch.randint(10, (samples,), device=device)
    data = Dataset("made up", x, y, x[:BATCH], y[:BATCH], 10)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    train_conv(made, data, recipe)
    return time.perf_counter() - started
