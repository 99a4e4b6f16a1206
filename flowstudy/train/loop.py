"""The training loop: a stack of nets, SGD with momentum, each net with its own settings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .datasets import Dataset
from .ensemble import Stack

LEARNING_RATE_FLOOR = 1e-5  # Srivastava et al. 2015, the authors' training code
EVALUATION_BATCH = 2_000  # samples: bounds the memory of an evaluation pass, does not change its result beyond rounding


@dataclass(frozen=True)
class Settings:
    """How the nets of a stack learn: what is per net is a (net,) float64 tensor, the rest they share.

    Attributes:
        learning_rate: step size of a constant gradient, in the authors' convention v = m v - lr (1 - m) g, w += v:
            momentum does not rescale it.  PyTorch's lr is learning_rate * (1 - momentum).
        momentum: m, in [0, 1).
        decay: factor on the learning rate after each epoch, down to a floor of 1e-5.
        epochs: passes over the training set.
        batch_size: samples per update; the last batch of an epoch may be smaller.
        order_seed: of the order of samples.  Nets of a stack share it: common random numbers sharpen comparisons.
    """

    learning_rate: Float[Tensor, " net"]
    momentum: Float[Tensor, " net"]
    decay: Float[Tensor, " net"]
    epochs: int
    batch_size: int
    order_seed: int = 0


@dataclass(frozen=True)
class History:
    """What training left behind.

    Attributes:
        loss: mean training cross-entropy [nats per sample] over the whole training set, after each epoch; entry 0 is
            before training.  nan from the epoch on in which the net diverged.
        diverged: the first epoch after which the loss was not finite; -1 for nets that stayed finite.
        stack: the nets as trained.
    """

    loss: Float[Tensor, "net epochs"]
    diverged: Int[Tensor, " net"]
    stack: Stack


def train(nets: Stack, data: Dataset, settings: Settings,
          tick: Callable[[int], object] = lambda _nets: None) -> History:
    """Train every net of the stack on the same batches; nets do not interact, whatever becomes of one of them.

    Args:
        data: flat inputs, on the stack's device.
        tick: called with the number of nets after each epoch, for a progress bar.
    """
    state = {name: value.clone().requires_grad_() for name, value in nets.state.items()}
    nets = Stack(nets.template, state)
    weights = list(state.values())
    velocity = [torch.zeros_like(w) for w in weights]
    momentum = per_net(settings.momentum, weights)
    losses = [training_loss(nets, data)]
    for epoch in range(settings.epochs):
        rate = (settings.learning_rate * settings.decay**epoch).clamp(min=LEARNING_RATE_FLOOR) * (1 - settings.momentum)
        step = per_net(rate, weights)
        for index in batches(len(data.x_train), settings, epoch):
            index = index.to(data.x_train.device)
            loss = cross_entropy(nets(data.x_train[index]), data.y_train[index])
            # Nets share no weights, so the sum's gradient is each net's own, and one net's nan stays its own.
            gradients = torch.autograd.grad(loss.sum(), weights)
            with torch.no_grad():
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_addcmul_(velocity, gradients, step, value=-1.0)
                torch._foreach_add_(weights, velocity)
        losses.append(training_loss(nets, data))
        tick(len(nets))
    loss = torch.stack(losses, 1).cpu()
    failed = ~loss.isfinite()
    diverged = torch.where(failed.any(1), failed.int().argmax(1), -1)
    loss = loss.masked_fill(failed.cummax(1).values if failed.numel() else failed, torch.nan)
    return History(loss, diverged, Stack(nets.template, {name: value.detach() for name, value in state.items()}))


def batches(samples: int, settings: Settings, epoch: int) -> Iterator[Tensor]:
    """Index tensors of one epoch; the order depends on the seed and the epoch alone, on every device."""
    generator = torch.Generator().manual_seed(settings.order_seed * 1_000_003 + epoch)
    yield from torch.randperm(samples, generator=generator).split(settings.batch_size)


def cross_entropy(logits: Float[Tensor, "net sample classes"], y: Int[Tensor, " sample"]) -> Float[Tensor, " net"]:
    """Mean cross-entropy [nats per sample] of each net."""
    log_p = F.log_softmax(logits, -1)
    return -log_p.gather(-1, y.expand(len(logits), -1).unsqueeze(-1)).mean((1, 2))


@torch.no_grad()
def training_loss(nets: Stack, data: Dataset) -> Float[Tensor, " net"]:
    """Mean cross-entropy over the whole training set, float64."""
    total = torch.zeros(len(nets), dtype=torch.float64, device=data.x_train.device)
    for x, y in zip(data.x_train.split(EVALUATION_BATCH), data.y_train.split(EVALUATION_BATCH), strict=True):
        total += cross_entropy(nets(x), y).double() * len(x)
    return total / len(data.x_train)


def per_net(values: Float[Tensor, " net"], weights: list[Tensor]) -> list[Tensor]:
    """(net,) values shaped to multiply each (net, ...) weight."""
    return [values.to(w).view(-1, *[1] * (w.ndim - 1)) for w in weights]
