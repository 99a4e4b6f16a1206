"""The largest learning rate at which the first steps of gradient descent do not raise the loss.

The curvature at the start, 2 / (largest eigenvalue of H K), tells where to look, and no more: on small nets the rate
that 20 steps bear was 0.2 to 4 times that, since the residual's part along the first eigenvector may be small, and the
kernel grows while it learns.
"""

import math
import time

import torch

from flowstudy.measure.models.backward import dense

from .linearised import Linearised

STEPS = 20        # of gradient descent on the whole batch
AROUND = 100.0    # times 2 / sharpness, and a share of it: between these the rate is looked for
CLOSE = 1.1       # ratio of a rate that raises the loss to one that does not
TRIES = 7         # that bisection needs to come so close
PATIENCE = 15.0   # seconds: where the steps would take longer the curvature is all there is


def largest_rate(net: Linearised, sharpness: float, momentum: float) -> tuple[float, bool]:
    """By bisection, and True; 2 (1 + momentum) / sharpness, and False, where the steps would take too long."""
    by_curvature = 2 * (1 + momentum) / sharpness if sharpness > 0 else math.nan
    started = time.perf_counter()
    if not math.isfinite(by_curvature) or raises(net, 0.0, momentum, steps=1):
        return by_curvature, False
    if (time.perf_counter() - started) / 2 * STEPS * TRIES > PATIENCE:
        return by_curvature, False
    low, high = by_curvature / AROUND, by_curvature * AROUND
    while high > CLOSE * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if raises(net, middle, momentum) else (middle, high)
    return low, True


def raises(net: Linearised, rate: float, momentum: float, steps: int = STEPS) -> bool:
    """Whether the loss after any of the steps is above the first, or not finite.

    The steps are the probe's own, put back afterwards: a backward pass that runs parts of the model again (a
    checkpoint, an adjoint) finds the weights there.
    """
    weights = list(net.parameters.values())
    start, velocity = [w.data for w in weights], [torch.zeros_like(w.data) for w in weights]
    first = math.inf
    try:
        for step in range(steps + 1):
            loss = net.objective(net.run(net.x), net.y)
            if not loss.item() <= first:
                return True
            if step == 0:
                first = loss.item()
            if step < steps:
                gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_add_(velocity, [dense(g) for g in gradients])
                for w, moved in zip(weights, torch._foreach_add([w.data for w in weights], velocity, alpha=-rate),
                                    strict=True):
                    w.data = moved
    finally:
        for w, before in zip(weights, start, strict=True):
            w.data = before
    return False
