"""The optimizers of a trial: PyTorch's, at its defaults, and their update rules for stacked weights.

A rule updates (net, ...) weights and moments in place; `rates` are the learning rates, shaped to multiply each weight,
and `step` counts from 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

MOMENTUM = 0.9
BETA_1, BETA_2, EPSILON, DECAY = 0.9, 0.999, 1e-8, 0.01  # torch.optim.Adam and AdamW at their defaults

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Optimizer:
    """How weights learn.

    Attributes:
        of_torch: (parameters, lr) -> torch.optim.Optimizer, for one net by itself.
        moments: how many tensors of a weight's shape are kept for each weight; they start at 0.
        update: the rule for stacked weights: (weights, moments, gradients, rates, step).
    """

    of_torch: Callable[..., torch.optim.Optimizer]
    moments: int
    update: Callable[[Tensors, Sequence[Tensors], Tensors, Tensors, int], None]


def descend(weights: Tensors, _moments: Sequence[Tensors], gradients: Tensors, rates: Tensors, _step: int) -> None:
    """w -= rate g."""
    torch._foreach_addcmul_(weights, gradients, rates, value=-1.0)


def descend_with_momentum(weights: Tensors, moments: Sequence[Tensors], gradients: Tensors, rates: Tensors,
                          _step: int) -> None:
    """v = m v + g, w -= rate v."""
    velocity, = moments
    torch._foreach_mul_(velocity, MOMENTUM)
    torch._foreach_add_(velocity, gradients)
    torch._foreach_addcmul_(weights, velocity, rates, value=-1.0)


def adam(weights: Tensors, moments: Sequence[Tensors], gradients: Tensors, rates: Tensors, step: int,
         decay: float = 0.0) -> None:
    """Kingma & Ba 2015, algorithm 1; with a decay, that of Loshchilov & Hutter 2019: w -= rate decay w comes first."""
    first, second = moments
    if decay:
        torch._foreach_mul_(weights, [1 - decay * rate for rate in rates])
    torch._foreach_lerp_(first, gradients, 1 - BETA_1)
    torch._foreach_mul_(second, BETA_2)
    torch._foreach_addcmul_(second, gradients, gradients, value=1 - BETA_2)
    root = torch._foreach_sqrt(second)
    torch._foreach_div_(root, (1 - BETA_2**step) ** 0.5)
    torch._foreach_add_(root, EPSILON)
    direction = torch._foreach_div(first, root)
    torch._foreach_addcmul_(weights, direction, rates, value=-1 / (1 - BETA_1**step))


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(torch.optim.SGD, 0, descend),
    "momentum": Optimizer(partial(torch.optim.SGD, momentum=MOMENTUM), 1, descend_with_momentum),
    "adam": Optimizer(torch.optim.Adam, 2, adam),
    "adamw": Optimizer(torch.optim.AdamW, 2, partial(adam, decay=DECAY)),
}


def warm_up_factor(step: int, warm_up: int) -> float:
    """Of the learning rate at this step, which counts from 1: a line up to 1 at step `warm_up`, and 1 from there."""
    return min(1.0, step / warm_up) if warm_up else 1.0
