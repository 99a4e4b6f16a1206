"""Train a convolutional net by the authors' recipe."""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowstudy.arguments import a_real, a_whole, check_function, check_path, instance_of, optional, takes
from flowstudy.data import Dataset
from flowstudy.data.augment import INPUTS, random_crops
from flowstudy.refusal import RefusalError
from flowstudy.torch_arguments import MODULE
from flowstudy.torch_settings import one_thread
from flowstudy.train.checkpoint import Checkpoint
from flowstudy.train.precision import matrix_precision

from .sgd import nesterov_sgd, set_learning_rate
from .steps import ConvSteps

EVALUATION_BATCH = 1_000  # samples: bounds the memory of an evaluation pass


@dataclass(frozen=True)
class Recipe:
    """How a convolutional net learns.

    Attributes:
        inputs: "pixels_over_256" or "contrast_and_mean".
        learning_rate: of weights; see `nesterov_sgd` for biases and the read-out.
        drops: after so many epochs the rate is divided by 10, once for each.
        epochs: passes over the training set, in a new order each (the authors' files keep one order).
        crop: pad by 8 pixels, cut a random window of the old size, mirror half of them.
    """

    inputs: str
    learning_rate: float
    drops: tuple[int, ...]
    epochs: int
    crop: bool = False
    batch_size: int = 100
    momentum: float = 0.9
    weight_decay: float = 0.001

    @takes(epoch=a_whole(0))
    def rate(self, epoch: int) -> float:
        """The learning rate of one epoch.

        Args:
            epoch: passes over the training set before it.

        Returns:
            `learning_rate`, divided by ten at each of `drops` that has been reached.
        """
        return self.learning_rate * 0.1 ** sum(epoch >= drop for drop in self.drops)


MNIST_RECIPE = Recipe("pixels_over_256", 0.01, (100, 200), 300)
CIFAR_RECIPE = Recipe("contrast_and_mean", 0.025, (200, 300, 350), 400, crop=True)


@dataclass(frozen=True)
class ConvHistory:
    """What `train_conv` left behind, beside the trained net.

    Attributes:
        loss: mean cross-entropy [nats per sample] of each epoch's updates, as dropout and crops had them.
        test_accuracy: share of the test samples that are right after each epoch. The paper's number is the last one.
        diverged: the first epoch, from 0, whose loss is not finite, where training ended; -1 if none.
    """

    loss: list[float]
    test_accuracy: list[float]
    diverged: int


@takes(net=MODULE, data=instance_of(Dataset, "a Dataset"), recipe=instance_of(Recipe, "a Recipe"), seed=a_whole(0),
       checkpoint=optional(check_path), seconds=a_real("at least 0 and finite"), tick=check_function)
def train_conv(net: nn.Module, data: Dataset, recipe: Recipe, *, seed: int = 0,
               checkpoint: str | os.PathLike[str] | None = None, seconds: float = 60.0,
               tick: Callable[[], object] = lambda: None) -> ConvHistory:
    """Train one net, in place; a net that diverges is a result, not an error.

    Args:
        net: any image classifier with a `readout`, at its initial weights, on the device of `data`. A CPU trains it
            with one thread, its convolutions laid out channels last (12 % faster); a GPU replays its steps as a CUDA
            graph, in float32, whatever precision the process has set.  A net whose step waits for a number of the
            device, replaces its buffers or has hooks is called step by step there; what else Python does in its
            forward pass is done while a step is captured, not in each.
        data: images in [0, 1], as `load_dataset` gives them; the recipe prepares them.
        seed: of order, crops and dropout. Every epoch has generators of its own, so none has to be kept.
        checkpoint: a file. A run that was killed goes on from the end of an epoch, on a CPU to the same bits; a
            finished one returns its history and weights. A file of another net, recipe, seed or data is set aside.
        seconds: the least time between two checkpoints; the end is always kept.
        tick: called after each epoch.

    Returns:
        A ConvHistory: `loss` [nats per sample] and `test_accuracy` by epoch.

    Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), sections 3.2 and 3.3, and the authors' files.
    """
    there = next(net.parameters()).device
    if data.x_train.device != there:
        raise RefusalError(f"train_conv: `data` must be on the net's device {there}, got {data.x_train.device}. Move "
                           f"it there: data.to({str(there)!r}).")
    data = INPUTS[recipe.inputs](data)
    file = None if checkpoint is None else Checkpoint(checkpoint, seconds, run_key(net, data, recipe, seed))
    if there.type == "cpu":
        net.to(memory_format=torch.channels_last)
    optimizer = nesterov_sgd(net, recipe.learning_rate, recipe.momentum, recipe.weight_decay)
    history = ConvHistory([], [], -1) if file is None else restore(file, net, optimizer)
    steps = ConvSteps(net, optimizer, data, recipe.batch_size)
    for epoch in range(len(history.loss), recipe.epochs if history.diverged < 0 else 0):
        set_learning_rate(optimizer, recipe.rate(epoch))
        with matrix_precision("float32", there):
            loss = one_epoch(steps, recipe, seed * 1_000_003 + epoch)
            diverged = not math.isfinite(loss)
            share = math.nan if diverged else share_classified(net, data.x_test, data.y_test)
        history = ConvHistory([*history.loss, loss], [*history.test_accuracy, share], epoch if diverged else -1)
        last = diverged or epoch == recipe.epochs - 1
        if file is not None and (last or file.due()):
            file.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "history": vars(history)})
        tick()
        if last:
            break
    if file is not None:
        file.finish()
    return history


@one_thread()
def one_epoch(steps: ConvSteps, recipe: Recipe, seed: int) -> float:
    """One pass over the training set; its mean loss.  The host waits for the device at the end alone."""
    device, samples = steps.order.device, len(steps.order)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator)
    crops = random_crops(samples, generator) if recipe.crop else None
    steps.net.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        steps.new_epoch(order, crops)
        torch.manual_seed(seed)  # of dropout
        return steps.run()


@one_thread()
@torch.no_grad()
def share_classified(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the samples whose largest output is their label's, without dropout."""
    net.eval()
    right = sum((net(part).argmax(1) == labels).sum()
                for part, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True))
    return right.item() / len(x)


def restore(file: Checkpoint, net: nn.Module, optimizer: torch.optim.SGD) -> ConvHistory:
    saved = file.load()
    if saved is None:
        return ConvHistory([], [], -1)
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    return ConvHistory(**saved["history"])


def run_key(net: nn.Module, data: Dataset, recipe: Recipe, seed: int) -> str:
    """What a run is: structure, initial weights, data, recipe, seed."""
    weights = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in net.parameters())).hexdigest()
    return f"{net!r} {weights} {data.name} {tuple(data.x_train.shape)} {recipe} {seed}"
