"""Adam's metric: what it divides the gradient by, from the batch's gradient and its samples' shares of it."""

import torch
from jaxtyping import Float
from torch import Tensor

from .linearised import Linearised, flat

FLOOR = 1e-8      # of the largest entry: beside it gradients are as good as 0
MOST_GAIN = 1e2   # times the median: no parameter is preconditioned more than that


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
    """From the gradient that each sample's part of the residual gives, one pass of the batch each."""
    total, squares = 0.0, 0.0
    for i in range(net.samples):
        own = torch.zeros_like(residual)
        own[i] = net.samples * residual[i]
        share = flat(net.pull(own))
        total, squares = total + share, squares + share.square()
    mean = total / net.samples
    variance = (squares / net.samples - mean.square()).clamp(min=0.0) * net.samples / max(1, net.samples - 1)
    return adams_scale(mean, variance, batch_size)
