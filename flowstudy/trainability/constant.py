"""The lowest loss of a model that gives the same outputs for all inputs, as one that has learnt nothing."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowstudy.measure.gradients.losses import IGNORED, Loss

STEPS = 100     # steps of LBFGS, on a loss of one small vector
MOST = 2**24    # the most outputs that a loss function of the user's gets at once


def constant_loss(loss: str | Loss, outputs: Tensor, y: Tensor) -> float:
    """The lowest loss of outputs that are the same for all samples and positions, in the loss's units.

    Of cross-entropy it is the entropy of the labels' shares, of the mean squared error the targets' variance; of a
    function what LBFGS finds, from outputs of 0.

    Args:
        outputs: (sample, class, *position), for their shape.
        y: targets, of these samples or of others.
    Returns:
        nan where a function is not finite there, or not differentiable.
    """
    if loss == "cross_entropy":
        return entropy(label_shares(y, outputs.shape[1]))
    if loss == "mse":
        y = y.double()
        over = [0, *range(2, y.ndim)] if y.shape[1:] == outputs.shape[1:] else list(range(y.ndim))
        return (y - y.mean(over, keepdim=True)).square().mean().item()
    return lowest_by_search(loss, outputs, y)


def label_shares(y: Tensor, classes: int) -> Float[Tensor, " class"]:
    """The share of each class among labels, or its mean over probabilities (sample, class, *position)."""
    if y.is_floating_point():
        return y.double().transpose(0, 1).flatten(1).mean(1)
    return torch.bincount(y[y != IGNORED].flatten(), minlength=classes).double() / (y != IGNORED).sum()


def entropy(shares: Float[Tensor, " class"]) -> float:
    return torch.special.entr(shares).sum().item()


def lowest_by_search(objective: Loss, outputs: Tensor, y: Tensor) -> float:
    y = y[:max(1, MOST // max(1, outputs[0].numel()))]
    shape = (1, *outputs.shape[1:2], *[1] * max(0, outputs.ndim - 2))
    constant = torch.zeros(shape, dtype=torch.float64, device=outputs.device, requires_grad=True)
    solver = torch.optim.LBFGS([constant], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        return objective(constant.expand(len(y), *outputs.shape[1:]), y)

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    try:
        solver.step(closure)
        with torch.no_grad():
            lowest = loss().item()
    except RuntimeError:
        return math.nan
    return lowest if math.isfinite(lowest) else math.nan
