"""QR of a batch of matrices, three ways: the fast one, the one that keeps tiny rows, and the one that always does.

A long product A_L ... A_1 = Q_L R_L ... R_1 needs A Q = Q' R' to rounding, row by row, and a well-conditioned Q'; it
does not need Q' orthonormal. One pass of Cholesky QR, all of it batched matrix products, does the common case. Rows
of wild sizes need Householder reflections with the rows sorted by size, the usual sign and, for some matrices, pivoted
columns: without the pivoting the rows (1e-14, 1), (2e-14, 3), (1e-8, 1e-8), (2e-8, -1e-8) lose half their digits.

Source: Stathopoulos & Wu 2002 (Cholesky QR); Powell & Reid 1969, Cox & Higham 1998, Higham 2002 section 20.8
(Householder QR with row sorting and column pivoting has a backward error small in every row);
pytorch issue 143281 (torch.linalg.qr on CUDA loops over the batch to form Q: hence no Householder there by default).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowstudy.measure.numerics import EPS

# Largest over smallest diagonal entry of R up to which Cholesky QR is used. The true condition number was at most 300
# times this ratio in 22000 Gaussian matrices of width 12 to 256, so Q^T Q is I to eps * (3e6)**2 = 2e-3 at worst.
# Cholesky QR is not stable row by row: with a higher limit, factors graded by row would lose digits.
RATIO_LIMIT = 1e4
LARGEST_SQUARE = 2.0**200   # columns with squared norms in between this and its inverse: no Gram entry underflows
GROWTH_LIMIT = 64.0         # eps sqrt(columns) times a row's size: what a stable QR leaves of the row, and no more


def cholesky_qr(a: Float[Tensor, "batch rows columns"], gram: Float[Tensor, "batch columns columns"],
                dead: Bool[Tensor, "batch columns"] | None,
                ) -> tuple[Float[Tensor, "batch rows columns"], Float[Tensor, "batch columns columns"],
                           Bool[Tensor, " batch"]]:
    """R from the Gram matrix, Q = A R^-1, and for which members that is safe; the others hold rubbish.

    A `dead` column, zero for a reason, would make the Gram matrix singular: a one on its diagonal keeps the
    factorisation going, and R gets its zero back at the end. Any other column of zeros is not safe. With None no
    column is dead, a GPU is not waited for, and the rubbish may be nan.
    """
    size = gram.diagonal(dim1=-2, dim2=-1)
    in_range = (size < LARGEST_SQUARE) & (size > 1 / LARGEST_SQUARE)   # NaN compares false
    some_dead = dead is not None and bool(dead.any())
    if some_dead:
        gram, in_range = gram + torch.diag_embed(dead.to(gram)), dead | in_range
    lower, info = torch.linalg.cholesky_ex(gram)
    largest = smallest = lower.diagonal(dim1=-2, dim2=-1)
    if some_dead:
        largest, smallest = largest.masked_fill(dead, 0.0), smallest.masked_fill(dead, torch.inf)
    safe = (info == 0) & (largest.amax(-1) <= RATIO_LIMIT * smallest.amin(-1)) & in_range.all(-1)
    if dead is not None and not safe.all():
        lower = torch.where(safe[:, None, None], lower, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))
        a = a.masked_fill(~safe[:, None, None], 0.0)
    q = torch.linalg.solve_triangular(lower, a.mT, upper=False).mT   # from the left: twice as fast on the CPU
    q = q.contiguous()   # always: products of another layout differ in the last bit, so a mate's route would show
    return q, lower.mT.masked_fill(dead.unsqueeze(-2), 0.0) if some_dead else lower.mT, safe


def row_stable_qr(a: Float[Tensor, "batch rows columns"], row_noise: Float[Tensor, "batch rows"],
                  exponents: Float[Tensor, "batch columns"],
                  ) -> tuple[Float[Tensor, "batch rows small"], Float[Tensor, "batch small columns"],
                             Float[Tensor, "batch rows"], Int[Tensor, "batch columns"]]:
    """`a P = Q R` with every row of `a` kept to rounding, however small it is; small = min(rows, columns).

    LAPACK's unpivoted QR first; a member of which it left too much in a row is done again with pivoted columns.

    Args:
        a: columns at most of order one.
        row_noise: size of each row in units of which its rounding counts.
        exponents: columns are taken by decreasing size in `a diag(2**exponents)`.
    Returns:
        Q, R, what is left of each row, |a P - Q R|, and the order P of the columns.
    """
    q, r = householder_qr(a)
    left = (a - q @ r).abs().amax(-1)
    order = torch.arange(a.shape[-1], device=a.device).expand(len(a), -1)
    coarse = (left > GROWTH_LIMIT * EPS * a.shape[-1] ** 0.5 * row_noise).any(-1)
    if coarse.any():
        index = coarse.nonzero().squeeze(-1)
        q_again, r_again, order_again = pivoted_qr(a[index], exponents[index])
        permuted = a[index].gather(-1, order_again.unsqueeze(-2).expand_as(a[index]))
        left = left.index_copy(0, index, (permuted - q_again @ r_again).abs().amax(-1))
        q, r = q.index_copy(0, index, q_again), r.index_copy(0, index, r_again)
        order = order.index_copy(0, index, order_again)
    return q.contiguous(), r.contiguous(), left, order


def householder_qr(a: Float[Tensor, "batch rows columns"],
                   ) -> tuple[Float[Tensor, "batch rows small"], Float[Tensor, "batch small columns"]]:
    """LAPACK's QR with the rows sorted by size, so that a zero row stays zero and a tiny one mostly keeps its digits.

    That is what a layer with saturated or dead units is: W with its rows scaled by numbers from 1 down to 0.
    """
    order = by_size(a)
    q, r = torch.linalg.qr(a.gather(-2, order.unsqueeze(-1).expand_as(a)))
    return torch.empty_like(q).scatter_(-2, order.unsqueeze(-1).expand_as(q), q), r


def pivoted_qr(a: Float[Tensor, "batch rows columns"], exponents: Float[Tensor, "batch columns"],
               ) -> tuple[Float[Tensor, "batch rows small"], Float[Tensor, "batch small columns"],
                          Int[Tensor, "batch columns"]]:
    """Householder QR of `a P`, rows sorted by size and columns pivoted by their size times 2**exponents."""
    batch, rows, columns = a.shape
    small, members = min(rows, columns), torch.arange(batch, device=a.device)
    rows_by_size = by_size(a)
    r = a.gather(-2, rows_by_size.unsqueeze(-1).expand_as(a)).clone()
    order, exponents = torch.arange(columns, device=a.device).repeat(batch, 1), exponents.clone()
    reflectors = []
    for k in range(small):
        best = k + (log_norms(r[:, k:, k:]) + exponents[:, k:]).argmax(-1)
        for table in (r.mT, order, exponents):   # swap column k and the best
            table[members, k], table[members, best] = table[members, best].clone(), table[:, k].clone()
        reflector = reflection(r[:, k:, k])
        reflectors.append(reflector)
        reflect(r[:, k:, k:], reflector)
        r[:, k + 1:, k] = 0.0
    q = torch.eye(rows, small, dtype=a.dtype, device=a.device).repeat(batch, 1, 1)
    for k in reversed(range(small)):
        reflect(q[:, k:, k:], reflectors[k])
    return torch.empty_like(q).scatter_(-2, rows_by_size.unsqueeze(-1).expand_as(q), q), r[:, :small].triu(), order


def reflection(x: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch rows"]:
    """v with (I - v v^T) x = -sign(x_1) |x| e_1 and v^T v = 2: the sign that cancels nothing. Zero for a zero x."""
    peak = x.abs().amax(-1, keepdim=True)
    v = torch.where(peak > 0, x / peak, 0.0)
    v[:, 0] += torch.where(v[:, 0] < 0, -1.0, 1.0) * torch.linalg.vector_norm(v, dim=-1)
    return torch.where(peak > 0, v * (2**0.5 / torch.linalg.vector_norm(v, dim=-1, keepdim=True)), 0.0)


def reflect(a: Float[Tensor, "batch rows columns"], v: Float[Tensor, "batch rows"]) -> None:
    """a <- (I - v v^T) a, in place."""
    a -= v.unsqueeze(-1) * (v.unsqueeze(-2) @ a)


def log_norms(a: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch columns"]:
    """log2 of the columns' norms, without under- or overflow."""
    peak = a.abs().amax(-2)
    scaled = torch.where(peak.unsqueeze(-2) > 0, a / peak.unsqueeze(-2), 0.0)
    return peak.log2() + torch.linalg.vector_norm(scaled, dim=-2).log2()


def by_size(a: Float[Tensor, "batch rows columns"]) -> Int[Tensor, "batch rows"]:
    """Rows by decreasing largest entry, which unlike a norm cannot underflow."""
    return a.abs().amax(-1).argsort(dim=-1, descending=True, stable=True)
