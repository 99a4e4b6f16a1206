"""Several convolutional nets, one after another: the paper's, by name, and their plain twins."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from flowstudy.arguments import (
    FLAG,
    NAME,
    a_whole,
    check_kind,
    check_path,
    instance_of,
    one_among,
    optional,
    several,
    some_mapping,
    takes,
)
from flowstudy.data.datasets import Dataset, load_dataset
from flowstudy.nets import ConvNet, cifar_conv_net, fitnet, initialize_as_authors, mnist_conv_net
from flowstudy.nets.convolutional import BLOCKS, FITNETS
from flowstudy.progress import progress_bar
from flowstudy.refusal import RefusalError
from flowstudy.torch_arguments import check_device_or_auto

from .recipe import Recipe, train_conv

CONV_NETS: dict[str, Callable[..., ConvNet]] = {
    "mnist_8": partial(mnist_conv_net, 8), "mnist_16": partial(mnist_conv_net, 16),
    "mnist_32": partial(mnist_conv_net, 32),
    "cifar_10": partial(cifar_conv_net, 10), "cifar_100": partial(cifar_conv_net, 100),
    **{name: partial(fitnet, name) for name in FITNETS},
}


class ConvRun(NamedTuple):
    """A net of `CONV_NETS`, "highway" or "plain", and the seed of its weights, order of samples, crops and dropout."""

    net: str
    block: str
    seed: int


@takes(net=several(one_among(CONV_NETS)), block=several(one_among(BLOCKS)))
def conv_grid(net: Sequence[str], block: Sequence[str], seed: Iterable[int]) -> list[ConvRun]:
    """All combinations.

    Returns:
        A list of runs, the last argument fastest.

    >>> conv_grid(["mnist_16"], ["highway", "plain"], range(1))
    [ConvRun(net='mnist_16', block='highway', seed=0), ConvRun(net='mnist_16', block='plain', seed=0)]
    """
    return [ConvRun(*values) for values in itertools.product(net, block, seeds_of("conv_grid", seed))]


def seeds_of(call: str, seed: Iterable[int]) -> list[int]:
    seeds = list(check_kind(call, "seed", seed, Iterable, "several seeds"))
    several(a_whole(0))(call, "seed", seeds)
    return seeds


@takes(name=NAME, size=a_whole(1), channels=optional(a_whole(0)), train_samples=optional(a_whole(1)),
       device=check_device_or_auto)
def load_images(name: str, size: int, *, channels: int | None = None, train_samples: int | None = None,
                device: str | torch.device = "auto") -> Dataset:
    """A data set with images of size x size pixels, enlarged bilinearly where they are smaller, as the digits are.

    `channels` = 3 makes grey images coloured ones of three equal channels; images that have another number of channels
    and are not grey are refused.

    Returns:
        The Dataset: x (sample, channel, size, size) in [0, 1].
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = load_dataset(name, device=device)
    if train_samples is not None:
        data = data.subset(train=train_samples)
    there = data.x_train.shape[1]
    channels = there if channels is None else channels
    if channels < 1 or there not in (1, channels):
        raise RefusalError(f"load_images: `channels` must be {'at least 1' if there == 1 else there} for {name}, got "
                           f"{channels}. Only the one channel of grey images can be repeated.")

    def fitted(x: Tensor) -> Tensor:
        x = x if x.shape[-1] == size else F.interpolate(x, (size, size), mode="bilinear")
        return x.expand(-1, channels, -1, -1)

    return replace(data, x_train=fitted(data.x_train), x_test=fitted(data.x_test))


@takes(runs=several(instance_of(ConvRun, "a ConvRun")), data=instance_of(Dataset, "a Dataset"),
       recipe=instance_of(Recipe, "a Recipe"), store=optional(check_path), progress=FLAG)
def train_conv_nets(runs: Sequence[ConvRun], data: Dataset, recipe: Recipe, *,
                    store: str | os.PathLike[str] | None = None, progress: bool = True) -> pd.DataFrame:
    """Train each net from the authors' initial weights, on the device of `data`.

    Args:
        runs: `conv_grid`'s.
        store: a folder; conv_nets/ in it keeps a file for each run, which goes on from there after a kill, and once
            finished is not computed again. `torch.load` finds the trained weights in it.
    Returns:
        `net`, `block`, `seed`, `dataset`, `learning_rate` (the recipe's first), `parameters`, `epoch` (from 1),
        `loss` (training, nats), `test_accuracy`.
        A net that diverged has fewer rows, the last of them with nan.
    """
    with bar_of(len(runs) * recipe.epochs, progress) as bar:
        return train_each(runs, data, recipe, store, bar)


def bar_of(epochs: int, progress: bool) -> tqdm:
    return progress_bar(total=epochs, desc="convolutional nets", unit="epoch", disable=not progress)


def train_each(runs: Sequence[ConvRun], data: Dataset, recipe: Recipe, store: str | os.PathLike[str] | None,
               bar: tqdm) -> pd.DataFrame:
    frames = []
    for number, run in enumerate(runs, 1):
        bar.set_postfix_str(f"{run.net} {run.block} on {data.name}, net {number} of {len(runs)} at learning rate "
                            f"{recipe.learning_rate:g}")
        net = initialize_as_authors(CONV_NETS[run.net](block=run.block), run.seed).to(data.x_train.device)
        name = hashlib.sha256(f"{run} {data.name} {len(data.x_train)} {recipe}".encode()).hexdigest()[:16]
        file = None if store is None else Path(store) / "conv_nets" / f"{name}.pt"
        done = bar.n
        history = train_conv(net, data, recipe, seed=run.seed, checkpoint=file, tick=lambda: bar.update())
        bar.update(done + recipe.epochs - bar.n)  # what was there, or was not needed
        parameters = sum(p.numel() for p in net.parameters())
        frames.append(pd.DataFrame(run._asdict() | {
            "dataset": data.name, "learning_rate": recipe.learning_rate, "parameters": parameters,
            "epoch": range(1, len(history.loss) + 1), "loss": history.loss,
            "test_accuracy": history.test_accuracy}))
    return pd.concat(frames, ignore_index=True)


@takes(nets=some_mapping, block=several(one_among(BLOCKS)),
       recipes=several(instance_of(Recipe, "a Recipe")), size=a_whole(1), channels=optional(a_whole(1)),
       train_samples=optional(a_whole(1)), device=check_device_or_auto, store=optional(check_path), progress=FLAG)
def train_conv_study(nets: Mapping[str, Sequence[str]], block: Sequence[str], seed: Iterable[int],
                     recipes: Sequence[Recipe], *, size: int, channels: int | None = None,
                     train_samples: int | None = None, device: str | torch.device = "auto",
                     store: str | os.PathLike[str] | None = None, progress: bool = True) -> pd.DataFrame:
    """`train_conv_nets` on several data sets and by several recipes: the `nets` of each data set, every combination.

    `size`, `channels`, `train_samples` and `device` as for `load_images`.

    Returns:
        The rows of `train_conv_nets`, one data set and recipe after the other.
    """
    seeds, frames = seeds_of("train_conv_study", seed), []
    plans = {dataset: conv_grid(names, block, seeds) for dataset, names in nets.items()}  # refused before one trains
    epochs = sum(map(len, plans.values())) * sum(recipe.epochs for recipe in recipes)
    with bar_of(epochs, progress) as bar:
        for dataset, runs in plans.items():
            data = load_images(dataset, size, channels=channels, train_samples=train_samples, device=device)
            frames += [train_each(runs, data, recipe, store, bar) for recipe in recipes]
    return pd.concat(frames, ignore_index=True)
