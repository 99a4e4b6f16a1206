"""The statistics of each layer, computed from the results of a forward and a backward pass."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowstudy.measure.models.backward import Found, Scaled
from flowstudy.measure.models.forward import ACTIVATION_STATISTICS, Use

STATISTICS = ("log10_weight_gradient_norm", "log10_error_signal_norm", *ACTIVATION_STATISTICS, "error_signal_spread",
              "gradient_zero_fraction", "gradient_subnormal_fraction")
LOG10_2 = math.log10(2.0)
SMALLEST_NORMAL = -126.0  # log2 of float32's smallest normal number: digits are lost below, and all below 2**-149


def kind_of_gradient(gradients: list[Scaled | None]) -> str:
    """"none": the loss does not depend on these weights; "zero": exactly 0; else "value"."""
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return "none"
    return "value" if any(gradient.tensor.any() for gradient in present) else "zero"


@torch.no_grad()
def statistics_of(uses: list[Use], weights: list[list[str]], found: Found, like: Tensor,
                  samples: int) -> dict[str, Tensor]:
    """Every statistic, (layer,), or (net, layer) of a stack, on the device of `like`."""
    lead = like.ndim
    of_weights = {}   # once, however many uses share them: the steps of a recurrent net
    for names in map(tuple, weights):
        if names not in of_weights:
            own = [g for name in names if (g := found.gradients.get(name)) is not None]
            of_weights[names] = (log10_norm(own, lead), *lost_fractions(own, lead)) if own else (nothing(like),) * 3
    norms, zeros, subnormal = zip(*(of_weights[tuple(names)] for names in weights), strict=True)
    columns = (
        norms,
        [nothing(like) if e is None else log10_norm([e], lead) for e in found.errors],
        *zip(*(use.statistics for use in uses), strict=True),
        [nothing(like) if e is None else error_spread(e, lead, samples) for e in found.errors],
        zeros,
        subnormal,
    )
    return {name: torch.stack([value.to(like.device, torch.float64) for value in column], -1)
            for name, column in zip(STATISTICS, columns, strict=True)}


def nothing(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan, dtype=torch.float64)


def log10_norm(parts: list[Scaled], lead: int) -> Float[Tensor, "*net"]:
    """log10 of the joint Frobenius norm; entries are scaled to near 1 before squaring, so that none underflows."""
    parts = [part.normalised() for part in parts]
    home = parts[0].exponent.device   # one layer's weights may lie on several
    exponents = [part.exponent.to(home) for part in parts]
    exponent = torch.stack(exponents).amax(0)
    squares = sum(part.tensor.flatten(lead).abs().double().square().sum(-1).to(home) * torch.exp2(2 * (own - exponent))
                  for part, own in zip(parts, exponents, strict=True))
    return torch.where(squares == 0, -torch.inf, 0.5 * torch.log10(squares) + exponent * LOG10_2)


def error_spread(error: Scaled, lead: int, samples: int) -> Float[Tensor, "*net"]:
    """Standard deviation over samples of log10 ||dL/dh||, of the samples in which it is not 0."""
    tensor = error.normalised().tensor
    if tensor.ndim <= lead + 1 or tensor.shape[lead] != samples:
        return torch.full_like(error.exponent, torch.nan)
    norms = torch.linalg.vector_norm(tensor.flatten(lead + 1), dim=-1).double()
    live = norms > 0
    logs = torch.where(live, norms.log10(), 0.0)
    count = live.sum(-1)
    mean = logs.sum(-1) / count
    squares = torch.where(live, (logs - mean.unsqueeze(-1)).square(), 0.0).sum(-1)
    return torch.where(count > 1, (squares / (count - 1)).sqrt(), torch.nan).masked_fill(norms.isnan().any(-1),
                                                                                        torch.nan)


def lost_fractions(parts: list[Scaled], lead: int) -> tuple[Float[Tensor, "*net"], Float[Tensor, "*net"]]:
    """Share of the entries that are exactly 0, and that are not but below float32's normal numbers."""
    zeros, subnormal, entries, home = 0.0, 0.0, 0, parts[0].tensor.device
    for part in parts:
        size = part.tensor.flatten(lead).abs()
        zeros = zeros + (size == 0).double().sum(-1).to(home)
        low = (size > 0) & (size.log2() < SMALLEST_NORMAL - part.exponent.unsqueeze(-1))
        subnormal = subnormal + low.double().sum(-1).to(home)
        entries += size.shape[-1]
    return zeros / entries, subnormal / entries
