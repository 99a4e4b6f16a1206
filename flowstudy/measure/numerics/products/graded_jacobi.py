"""Singular values of a strongly graded matrix, diag(2**e) U, however far apart the exponents lie.

The rows' sizes live in the integer exponents e, so that every scaling is exact and nothing over- or underflows; U has
entries of order one. Two zero-shift QR flips bring it closer to diagonal, one-sided Jacobi rotations of the rows
finish it (`one_sided_jacobi`). For a diagonal times a well-conditioned matrix this gets every singular value to about
eps * kappa(U), the small ones as well as the large ones.

Source: Demmel & Veselic 1992 (relative accuracy of Jacobi); Drmac & Veselic 2008 (QR preconditioning).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .one_sided_jacobi import DEAD, LN2, log_singular_values


def power_ratio(columns: Float[Tensor, "batch columns"], rows: Float[Tensor, "batch rows"],
                ) -> Float[Tensor, "batch rows columns"]:
    """2**(columns_j - rows_i), exact; capped where it could overflow, which is only where it multiplies a zero."""
    return torch.exp2((columns.unsqueeze(-2) - rows.unsqueeze(-1)).clamp_(-1100.0, 900.0))


def normalize_rows(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
                   ) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, "batch rows columns"]]:
    """The same matrix with every row's largest entry in [0.5, 1): powers of two move from U to the exponents."""
    peak = u.abs().amax(-1)
    shift = torch.frexp(peak).exponent.to(u)
    return torch.where(peak == 0, DEAD, exponents + shift), u * torch.exp2(-shift).unsqueeze(-1)


def log_row_norms(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
                  ) -> Float[Tensor, "batch rows"]:
    """Natural log of the row norms of diag(2**e) U, -inf for dead rows."""
    norm = torch.where(exponents <= DEAD / 2, 0.0, torch.linalg.vector_norm(u, dim=-1))
    return exponents * LN2 + norm.log()


def sort_rows(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
              ) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, "batch rows columns"]]:
    """Largest row first; a left permutation changes no singular value."""
    order = log_row_norms(exponents, u).argsort(dim=-1, descending=True, stable=True)
    return exponents.gather(-1, order), u.gather(-2, order.unsqueeze(-1).expand_as(u))


def flip(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
         ) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, "batch rows rows"], Float[Tensor, "batch rows"]]:
    """One zero-shift QR step: U = L Q, Q dropped, the rest transposed and its rows' sizes taken out again.

    Third result: |row of U| / |diagonal of L|, how nearly each row depends on the ones above it.
    """
    r = torch.linalg.qr(u.mT, mode="r").R
    dependence = torch.linalg.vector_norm(r, dim=-2) / r.diagonal(dim1=-2, dim2=-1).abs()
    exponents, u = normalize_rows(exponents, r * power_ratio(exponents, exponents))
    return *sort_rows(exponents, u), dependence


def graded_singular_values(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
                           ) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, "batch rows"]]:
    """Natural logs of all singular values of diag(2**exponents) U, and the error of each in units of eps.

    Args:
        exponents: whole numbers as float64; DEAD marks a zero row.
        u: rows <= columns.
    Returns:
        log values, descending, -inf once per dead row, and their estimated sensitivity. NaN stays in its member.
    """
    if u.device.type != "cpu":
        return tuple(part.to(u.device) for part in graded_singular_values(exponents.cpu(), u.cpu()))
    exponents, u = sort_rows(*normalize_rows(exponents, u))
    exponents, u, dependence = flip(exponents, u)
    dependence = dependence.nan_to_num(nan=1.0, posinf=1.0).cummax(-1).values   # 0 / 0 in dead rows
    exponents, u, _ = flip(exponents, u)
    return log_singular_values(exponents, u), dependence
