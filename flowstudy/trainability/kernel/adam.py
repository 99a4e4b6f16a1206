"""Adam's metric: the numbers by which it divides the gradient, estimated from a batch and its single samples."""

import torch
from jaxtyping import Float
from torch import Tensor

from .linearised import Linearised, flat

FLOOR = 1e-8      # gradients below this share of the largest entry count as 0
MOST_GAIN = 1e2   # upper bound of a parameter's factor, as a multiple of the median factor


def adams_scale(mean: Tensor, variance: Tensor, batch_size: int) -> Tensor:
    """1 / sqrt(g^2 + Var_i(g_i) / B), bounded where gradients are as good as 0."""
    size = (mean.square() + variance / batch_size).sqrt()
    scale = 1 / (size + FLOOR * size.max() + 1e-300)
    return scale.clamp(max=float(scale.median()) * MOST_GAIN)


def preconditioner_of_rows(rows: Float[Tensor, "row parameter"], residual: Tensor, batch_size: int) -> Tensor:
    samples = len(residual)
    r = samples * residual.reshape(samples, -1).to(rows)   # of a sample's own loss
    shares = torch.bmm(r.unsqueeze(1), rows.view(samples, r.shape[1], -1)).squeeze(1)
    return adams_scale(shares.mean(0), shares.var(0), batch_size)


def preconditioner(net: Linearised, residual: Tensor, batch_size: int) -> Tensor:
    """Adam's factor for each parameter, from the gradient of each sample's own loss: a backward pass per sample."""
    total, squares = 0.0, 0.0
    for i in range(net.samples):
        own = torch.zeros_like(residual)
        own[i] = net.samples * residual[i]
        share = flat(net.pull(own))
        total, squares = total + share, squares + share.square()
    mean = total / net.samples
    variance = (squares / net.samples - mean.square()).clamp(min=0.0) * net.samples / max(1, net.samples - 1)
    return adams_scale(mean, variance, batch_size)
