"""First-order estimates of the effect of rounding in each factor on a product Q diag(2**e) U.

With errors, the product so far is Q (I + T) diag(2**e) U. Below the diagonal, T_ij is the angle by which direction j
leans towards the smaller direction i. A factor A Q = Q' R turns T into R T R^-1: the angle grows by r_ii / r_jj, and
direction j picks up T_ij r_ji / r_jj in its size. Above the diagonal T only changes U, by no more than its own size.

Kept are mean squares, errors of different origin taken as independent, in units of `eps`, the accuracy of the factors.
They leave out that R also moves an angle from one pair of directions to others. That is harmless while angles shrink,
as they do in a product whose singular values drift apart. Where they grow, as in A ... A^-1, a few random samples of T
itself are followed as well.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .graded_jacobi import power_ratio

SAMPLES = 4
GROWN = 64.0          # times the largest angle by a single factor: from there on samples are followed
# Squared, over eps**2.  An angle is followed far beyond eps**-2, at which its direction is lost: a factor may make that
# direction smaller than the one that it leans to, by more bits than float64 has.
LARGEST_ANGLE = 2.0**900
# With it, log_error was true in more than 99 of 100 random products of 28 kinds against exact arithmetic.
ERROR_FACTOR = 16.0
LARGEST_ERROR = 1.0   # log values with a larger error are reported as nan, and pivots with a larger one not trusted


def propagated(angle: Float[Tensor, "batch columns columns"], variance: Float[Tensor, "batch columns"],
               r: Float[Tensor, "batch kept columns"], noise: Float[Tensor, "batch kept"],
               inverse: Float[Tensor, "batch kept"], dead: Bool[Tensor, "batch kept"] | None, eps: float,
               ) -> tuple[Float[Tensor, "batch kept kept"], Float[Tensor, "batch kept"]]:
    """Squared angles and squared errors of the log sizes after one more factor, `A Q = Q' R`.

    Args:
        dead: directions that are exactly zero; None if there is none.
        noise: rounding in row k of R, in units of eps.
        inverse: norm of column j of R^-1, so that noise_k inverse_j is the new angle between directions j and k.
    """
    kept = r.shape[-2]
    pivot = r.diagonal(dim1=-2, dim2=-1).abs()
    pivot = pivot if dead is None else pivot.masked_fill(dead, 1.0)
    picked_up = angle[:, :, :kept].mT * (r / pivot.unsqueeze(-1)).square_()                    # (j, i)
    variance = variance[:, :kept] + picked_up.sum(-1) + picked_up[..., :kept].sum(-2) + (noise * inverse).square()
    ratio = pivot.unsqueeze(-1) / pivot.unsqueeze(-2)
    grown = angle[:, :kept, :kept] * ratio.square_()
    if kept < r.shape[-1]:   # a bottleneck: directions that no longer exist leave their share with those that do
        grown += (r[..., kept:] / pivot.unsqueeze(-1)).square() @ angle[:, kept:, :kept] * ratio
    grown += (noise.unsqueeze(-1) * inverse.unsqueeze(-2)).square_()
    angle = grown.tril_(-1).clamp_(max=LARGEST_ANGLE)
    if dead is not None and dead.any():
        angle = angle.masked_fill_(dead.unsqueeze(-1) | dead.unsqueeze(-2), 0.0)
        variance = variance.masked_fill(dead, 0.0)
    return angle, variance.clamp(max=eps**-2)


def lean_after(samples: Float[Tensor, "batch sample columns columns"], r: Float[Tensor, "batch kept columns"],
               noise: Float[Tensor, "batch kept"], inverse: Float[Tensor, "batch kept"],
               dead: Bool[Tensor, "batch kept"], exponents: Float[Tensor, "batch kept"], eps: float, steps: int,
               ) -> tuple[Float[Tensor, "batch sample kept kept"], Float[Tensor, "batch sample kept"],
                          Float[Tensor, "batch kept"]]:
    """Samples of T after one more factor, what they add to the log sizes, and what to their squared errors.

    Args:
        exponents: of the directions after the factor.
    """
    kept = r.shape[-2]
    gone = dead.unsqueeze(-1) | dead.unsqueeze(-2)
    square = r[..., :kept].masked_fill(gone, 0.0) + torch.diag_embed(dead.to(r))
    moved = (r.unsqueeze(1) @ samples)[..., :kept]
    moved = torch.linalg.solve_triangular(square.unsqueeze(1), moved, upper=True, left=False)
    moved = moved.nan_to_num(nan=1 / eps).clamp(-1 / eps, 1 / eps).masked_fill(gone.unsqueeze(1), 0.0)
    new = signs(kept, steps).to(r) * (noise.unsqueeze(-1) * inverse.unsqueeze(-2)).unsqueeze(1)
    return (moved + new).tril(-1).clamp(-1 / eps, 1 / eps), moved.diagonal(dim1=-2, dim2=-1), taken_up(
        moved.triu(1), exponents, eps)


def taken_up(samples: Float[Tensor, "batch sample k k"], exponents: Float[Tensor, "batch k"], eps: float,
             ) -> Float[Tensor, "batch k"]:
    """Squared relative error of U's rows (the first k) by these entries of T, which put parts of other rows (the last
    k) into them."""
    ratio = power_ratio(exponents, exponents).unsqueeze(1)
    return (samples * ratio).clamp(-1 / eps, 1 / eps).square().sum(-1).mean(1)


def signs(size: int, seed: int) -> Float[Tensor, "sample k k"]:
    """Random signs, the same for all members; the global generator is not used."""
    return 2.0 * torch.randint(0, 2, (SAMPLES, size, size), generator=torch.Generator().manual_seed(seed)) - 1.0


def rescaled(angle: Float[Tensor, "*batch k k"], shift: Float[Tensor, "*same k"]) -> Float[Tensor, "*batch k k"]:
    """Angles between directions whose vectors are divided by 2**shift."""
    return angle * torch.exp2((shift.unsqueeze(-1) - shift.unsqueeze(-2)).clamp(-1000.0, 1000.0))


def reordered(angle: Float[Tensor, "*batch k k"], order: Int[Tensor, "*batch k"]) -> Float[Tensor, "*batch k k"]:
    rows, columns = order.unsqueeze(-1).expand_as(angle), order.unsqueeze(-2).expand_as(angle)
    return angle.gather(-2, rows).gather(-1, columns)


def hidden_share(r: Float[Tensor, "batch kept columns"], exponents: Float[Tensor, "batch columns"],
                 hidden: Bool[Tensor, "batch columns"], dead: Bool[Tensor, "batch kept"], eps: float,
                 ) -> Float[Tensor, "batch kept"]:
    """Squared relative error that unresolved directions of at most 2**exponents put into the rows of the others."""
    pivot = r.diagonal(dim1=-2, dim2=-1).masked_fill(dead, 1.0).abs().unsqueeze(-1)
    ratio = (r.abs() / pivot).masked_fill(~hidden.unsqueeze(-2), 0.0).triu(1)
    return (ratio * power_ratio(exponents, exponents[:, :r.shape[-2]])).clamp(max=1.0).square().sum(-1) / eps**2


def final_error(angle: Float[Tensor, "batch k k"], variance: Float[Tensor, "batch k"],
                exponents: Float[Tensor, "batch k"], dependence: Float[Tensor, "batch k"],
                sizes: Float[Tensor, "batch k"], eps: float) -> Float[Tensor, "batch k"]:
    """Error of each log size, in units of eps.

    An angle matters in the end by the ratio of the sizes, and by its square. Smaller values are never claimed to be
    more certain: the estimates of close neighbours may be swapped.

    Args:
        sizes: natural logs of the rows' norms.
    """
    ratio = power_ratio(exponents, exponents).mT.clamp(max=1.0)             # (i, j): 2**(e_i - e_j)
    at_the_end = (angle * ratio.square() + (0.5 * eps * angle).square()).sum(-2)
    return (mixed(variance, sizes) + at_the_end + dependence.square()).cummax(-1).values.sqrt()


def mixed(variance: Float[Tensor, "batch k"], sizes: Float[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
    """Squared errors of the values by those of U's rows: a relative error of row j comes into value i by the square of
    the row's part in its left singular vector, which is about the smaller over the larger of the two sizes."""
    apart = (sizes.unsqueeze(-1) - sizes.unsqueeze(-2)).abs()
    share = (-4 * apart).exp().nan_to_num(nan=0.0)   # a row that is exactly zero has no part in anything
    return (variance.unsqueeze(-2) * share).amax(-1) if variance.shape[-1] else variance
