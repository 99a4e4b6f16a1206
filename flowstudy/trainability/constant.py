"""What a model reaches that learns nothing of its inputs: the same outputs for all of them."""

import math

import torch
from torch import Tensor

from flowstudy.measure.gradients.losses import Loss

STEPS = 100  # of LBFGS: a loss of one small vector


def constant_loss(objective: Loss, outputs: Tensor, y: Tensor) -> float:
    """The lowest loss of outputs that are the same for all samples and positions, in the loss's units.

    Of cross-entropy it is the entropy of the labels' shares, of the mean squared error the targets' variance.

    Args:
        outputs: (sample, class, *position), for their shape.
        y: targets.
    Returns:
        nan where the loss is not finite there, or not differentiable.
    """
    outputs = outputs.detach()
    shape = (1, *outputs.shape[1:2], *[1] * max(0, outputs.ndim - 2))
    constant = torch.zeros(shape, dtype=torch.float64, device=outputs.device, requires_grad=True)
    solver = torch.optim.LBFGS([constant], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(constant.expand_as(outputs), y)
        loss.backward()
        return loss

    try:
        solver.step(closure)
        with torch.no_grad():
            lowest = objective(constant.expand_as(outputs), y).item()
    except RuntimeError:
        return math.nan
    return lowest if math.isfinite(lowest) else math.nan
