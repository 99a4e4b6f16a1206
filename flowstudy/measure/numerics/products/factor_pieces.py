"""A matrix whose rows and columns differ widely in size, as an exact product A = diag(2**r) A' diag(2**c).

Rows and columns may differ by the whole range of float64, subnormal numbers included. The exponents are whole, so that
no digit is lost; every piece spans at most 2**SPAN, so that nothing under- or overflows on the way.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SPAN = 400.0        # [bits] range of the rows of one piece
EVEN = 8.0          # [bits] columns that differ by no more are left together


@dataclass(frozen=True)
class Scaling:
    """diag(2**exponents), exponents at most 0 and at least -SPAN; or 0 in place of 2**e where the exponent is -inf.

    Members whose exponents are all 0 do not need it.
    """

    exponents: Float[Tensor, "batch rows"]


@dataclass(frozen=True)
class Mixing:
    """A matrix with entries of order one, and the size 2**shift of all."""

    matrix: Float[Tensor, "batch rows columns"]
    shift: Float[Tensor, " batch"]


def tame_pieces(a: Float[Tensor, "batch rows columns"]) -> list[Scaling | Mixing]:
    """Factors of `a`, the one applied first first. All entries must be finite."""
    mantissa, whole = torch.frexp(a)
    entry = torch.where(a == 0, -torch.inf, whole.to(a))
    rows = entry.amax(-1)
    size = finite(rows.amax(-1, keepdim=True))
    rows = torch.where(rows.isfinite(), rows, size)
    columns = (entry - rows.unsqueeze(-1)).amax(-2)
    columns = torch.where(columns.amin(-1, keepdim=True) > -EVEN, 0.0, columns)
    low = rows - size
    merged = torch.where(low.amin(-1, keepdim=True) >= -SPAN, low, 0.0)
    exponent = entry - (rows - merged).unsqueeze(-1) - finite(columns).unsqueeze(-2)
    matrix = mantissa * torch.exp2(exponent.clamp(min=-1100.0))
    return [*scalings(columns), Mixing(matrix, size.squeeze(-1)), *scalings(low - merged)]


def finite(exponents: Tensor) -> Tensor:
    return torch.where(exponents.isfinite(), exponents, 0.0)


def scalings(exponents: Float[Tensor, "batch rows"]) -> list[Scaling]:
    """diag(2**exponents), exponents at most 0, as few diagonal matrices of limited range."""
    result = []
    while (exponents < 0).any():
        part = torch.where(exponents.isfinite(), exponents.clamp(min=-SPAN), exponents)
        result.append(Scaling(part))
        exponents = torch.where(exponents.isfinite(), exponents - part, 0.0)
    return result
