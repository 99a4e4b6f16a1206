"""QR of a batch of tall matrices, quickly, with a Q that is well conditioned rather than orthonormal to the last bit.

A long product A_L ... A_1 = Q_L R_L ... R_1 needs A Q = Q' R' to rounding and a well-conditioned Q'; it does not need
Q' orthonormal. So one pass of Cholesky QR, all of it batched matrix products, does the common case, and Householder
QR does what that cannot: members that are rank deficient, badly conditioned, or graded by row.

Source: Stathopoulos & Wu 2002 (Cholesky QR); Cox & Higham 1998 (Householder QR, row-sorted, is stable row by row);
pytorch issue 143281 (torch.linalg.qr on CUDA loops over the batch to form Q: hence no Householder there by default).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
# Largest over smallest diagonal entry of R up to which Cholesky QR is used. The true condition number was at most 300
# times this ratio in 22000 Gaussian matrices of width 12 to 256, so Q^T Q is I to eps * (3e6)**2 = 2e-3 at worst.
# Cholesky QR is not stable row by row: with a higher limit, factors graded by row would lose digits.
RATIO_LIMIT = 1e4
ROUTES = ("cholesky", "householder")


def batched_qr(a: Float[Tensor, "batch rows columns"], *, route: str = "cholesky",
               gram: Float[Tensor, "batch columns columns"] | None = None,
               ) -> tuple[Float[Tensor, "batch rows small"], Float[Tensor, "batch small columns"],
                          Bool[Tensor, " batch"]]:
    """`a = Q R` to rounding, member by member, R upper triangular; small = min(rows, columns).

    Args:
        a: float64. Exactly zero columns are allowed, NaN is not.
        route: "cholesky" where it is safe and Householder for the other members, or "householder" for all.
        gram: A^T A, if it is at hand.
    Returns:
        Q, condition number 1 to within a per cent and orthonormal to rounding on the Householder route, R, and which
        members went by Cholesky. Zero columns of `a` are zero columns of R; those of Q are then arbitrary or zero.
    """
    if route not in ROUTES:
        raise ValueError(f"batched_qr: `route` must be 'cholesky' or 'householder', got {route!r}.")
    if route == "householder" or a.shape[-2] < a.shape[-1]:
        return *householder_qr(a), torch.zeros(len(a), dtype=torch.bool, device=a.device)
    q, r, safe = cholesky_qr(a, a.mT @ a if gram is None else gram)
    if not safe.all():
        members = (~safe).nonzero().squeeze(-1)
        q_members, r_members = householder_qr(a[members])
        q, r = q.index_copy(0, members, q_members), r.index_copy(0, members, r_members)
    return q, r, safe


def cholesky_qr(a: Float[Tensor, "batch rows columns"], gram: Float[Tensor, "batch columns columns"],
                ) -> tuple[Float[Tensor, "batch rows columns"], Float[Tensor, "batch columns columns"],
                           Bool[Tensor, " batch"]]:
    """R from the Gram matrix, Q = A R^-1, and for which members that is safe; the others hold rubbish, not NaN.

    A zero column (a direction of the product that is already dead) would make the Gram matrix singular: a one on its
    diagonal keeps the factorisation going, and R gets its zero back at the end.
    """
    dead = gram.diagonal(dim1=-2, dim2=-1) == 0
    if dead.any():
        gram = gram + torch.diag_embed(dead.to(gram))
    lower, info = torch.linalg.cholesky_ex(gram)
    pivot = lower.diagonal(dim1=-2, dim2=-1)
    largest, smallest = pivot.masked_fill(dead, 0.0).amax(-1), pivot.masked_fill(dead, torch.inf).amin(-1)
    safe = (info == 0) & (largest <= RATIO_LIMIT * smallest)
    if not safe.all():
        lower = torch.where(safe[:, None, None], lower, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))
    q = torch.linalg.solve_triangular(lower, a.mT, upper=False).mT   # from the left: twice as fast on the CPU
    return q, lower.mT.masked_fill(dead.unsqueeze(-2), 0.0) if dead.any() else lower.mT, safe


def householder_qr(a: Float[Tensor, "batch rows columns"],
                   ) -> tuple[Float[Tensor, "batch rows small"], Float[Tensor, "batch small columns"]]:
    """LAPACK's QR with the rows sorted by size, so that a tiny row keeps its digits and a zero row stays zero.

    That is what a layer with saturated or dead units is: W with its rows scaled by numbers from 1 down to 0.
    """
    order = row_sizes(a).argsort(dim=-1, descending=True, stable=True)
    q, r = torch.linalg.qr(a.gather(-2, order.unsqueeze(-1).expand_as(a)))
    return torch.empty_like(q).scatter_(-2, order.unsqueeze(-1).expand_as(q), q), r


def row_sizes(a: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows"]:
    """Largest entry of each row: unlike a norm, it cannot underflow."""
    return a.abs().amax(-1)
