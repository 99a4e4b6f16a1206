"""The cosine between the gradients at two inputs by the angle between them, from all pairs of points on a circle."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from flowstudy.measure.models.copies import float64_copy
from flowstudy.nets.fully_connected import FullyConnected
from flowstudy.refusal import RefusalError

READOUTS = ("output", "centred")


def circle(a: Float[Tensor, " feature"], b: Float[Tensor, " feature"], points: int) -> Float64[Tensor, "point feature"]:
    """Equally spaced points of mean square 1 on the great circle through the directions of two inputs, a's first.

    Points `lag` steps apart have the cosine cos(2 pi lag / points), whichever they are.
    """
    first = nn.functional.normalize(a.double(), dim=0)
    other = b.double() - (first @ b.double()) * first
    if not other.norm() > 1e-6 * b.double().norm():
        raise RefusalError("circle: `b` must not be parallel to `a`: they span no plane. Give two different inputs.")
    axes = torch.stack([first, nn.functional.normalize(other, dim=0)])
    angle = 2 * math.pi * torch.arange(points, dtype=torch.float64, device=a.device) / points
    return math.sqrt(len(a)) * torch.stack([angle.cos(), angle.sin()], 1) @ axes


def input_gradients(net: FullyConnected, x: Float[Tensor, "point feature"]) -> tuple[
        Float64[Tensor, "readout point feature"], Float64[Tensor, "point unit"]]:
    """Gradients of the net's first output with respect to the input at every point, and the last hidden outputs.

    Args:
        net: one of flowstudy's fully connected nets; measured in float64 on a copy.
        x: inputs, each by itself.

    Returns:
        Two gradients, see `READOUTS`.  "output": of the first output as it is, at initialisation a random read-out of
        the last hidden layer.  "centred": of the read-out less its component along the mean over the points of the
        last hidden outputs.  These differ where depth makes all points alike (ReLU): the direction that they share has
        a singular value which outgrows all others, and at finite width what it sends back drowns the rest.
    """
    copied = float64_copy("input_gradients", net)
    x = x.detach().double().requires_grad_()
    hidden = nn.Sequential(*copied.hidden_layers)(x)
    readout = copied.readout.weight[0]
    shared = nn.functional.normalize(hidden.detach().mean(0), dim=0)
    readouts = (readout, readout - (readout @ shared) * shared)
    gradients = [torch.autograd.grad(hidden, x, v.expand_as(hidden), retain_graph=True)[0] for v in readouts]
    return torch.stack(gradients), hidden.detach()


def cosine_by_lag(vectors: Float64[Tensor, "point entry"], lags: list[int]) -> Float64[Tensor, " lag"]:
    """Mean cosine over all pairs of vectors `lag` steps apart around the circle.

    Pairs with a vector of exactly 0 are left out; nan where no pair is left.
    """
    sizes = vectors.abs().amax(1, keepdim=True)
    unit = nn.functional.normalize(vectors / sizes.where(sizes > 0, 1.0), dim=1)  # no square that underflows
    live = (sizes > 0).double()
    return torch.stack([(unit * unit.roll(-lag, 0)).sum() / (live * live.roll(-lag, 0)).sum() for lag in lags])
