"""The distribution of ln s, s the singular values: estimated by quadratures with an error, or of known values."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

UNDECIDED = 1e-12  # an unsettled weight below this is rounding


@dataclass(frozen=True)
class Density:
    """The distribution of the min(inputs, outputs) singular values: one Gauss quadrature per random start, or all of
    them as they are.

    Attributes:
        log_values: nodes, natural log of singular values, ascending in each row; -inf counts those below
            `resolved_above`, zeros among them.
        weights: of the nodes; each row sums to 1. The mean over rows estimates the share of singular values.
        unsettled: 0 where the node is a singular value, up to 1 where it may stand for several between its neighbours.
        resolved_above: natural log of the smallest singular value that float64 tells from rounding of the largest; -inf
            where all are resolved.
        is_exact: all singular values are known.
    """

    log_values: Float[Tensor, "query step"]
    weights: Float[Tensor, "query step"]
    unsettled: Float[Tensor, "query step"]
    resolved_above: float = -math.inf
    is_exact: bool = False

    @property
    def unresolved(self) -> float:
        """Share of the singular values below `resolved_above`, as estimated."""
        return (self.weights * (self.log_values == -math.inf)).sum(1).mean().item()

    def cumulative(self, log_value: Float[Tensor, " points"],
                   ) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
        """Share of the singular values at or below each point, and its error; nan where float64 does not resolve it.
        (The error alone is nan where there is one random start.)

        The error is the standard error over the random starts, and to it, for what one quadrature says: the weight of
        the node below and the node above the point, where that is not settled (Chebyshev, Markov and Stieltjes: the
        true share lies between the sums without and with them).
        """
        below = self.log_values.unsqueeze(-1) <= log_value
        shares = (self.weights.unsqueeze(-1) * below).sum(1)
        if self.is_exact:
            error = torch.zeros_like(log_value)
        else:
            spread = shares.std(0) if len(shares) > 1 else torch.full_like(log_value, math.nan)
            error = spread / len(shares) ** 0.5 + self.open_weight(below).mean(0)
        lost = (log_value < self.resolved_above) & (self.unresolved > UNDECIDED)
        return shares.mean(0).masked_fill(lost, math.nan), error.masked_fill(lost, math.nan)

    def density(self, edges: Float[Tensor, " edges"]) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"]]:
        """Share of the singular values per unit of ln s in each bin, above its lower edge, and its error."""
        share, error = self.cumulative(edges)
        return share.diff() / edges.diff(), (error[:-1] + error[1:]) / edges.diff()

    def open_weight(self, below: Tensor) -> Float[Tensor, "query points"]:
        """The larger of the unsettled weights on either side of each point."""
        weight = torch.nn.functional.pad(self.weights * self.unsettled, (1, 1))  # none beyond the ends
        node = below.sum(1)
        return torch.maximum(weight.gather(1, node), weight.gather(1, node + 1))


def exact_density(log_singular_values: Float[Tensor, " rank"]) -> Density:
    """The distribution of singular values that are all known, such as a sample's by the product route.

    >>> share, error = exact_density(torch.tensor([-800.0, -400.0, -0.5])).cumulative(torch.tensor([-400.0]))
    >>> round(share.item(), 4), error.item()
    (0.6667, 0.0)

    Args:
        log_singular_values: natural logs, in any order; -inf is a zero. nan is a value that is known to be below the
            others and not where (the dense route's): `resolved_above` is then the smallest that is known.
    """
    unknown = log_singular_values.isnan()
    known = log_singular_values.masked_fill(unknown, -math.inf).sort().values.unsqueeze(0)
    finite = known[known.isfinite()]
    floor = finite.min().item() if unknown.any() and len(finite) else math.inf if unknown.any() else -math.inf
    return Density(known, torch.full_like(known, 1 / known.shape[1]), torch.zeros_like(known), floor, is_exact=True)
