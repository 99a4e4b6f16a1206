"""Singular values of a strongly graded matrix, diag(2**e) U, however far apart the exponents lie.

The rows' sizes live in the integer exponents e, so that every scaling is exact and nothing over- or underflows; U has
entries of order one. Two or more zero-shift QR flips bring the matrix close to diagonal, one-sided Jacobi rotations of
the rows, written without the scale, finish it. For a diagonal times a well-conditioned matrix this gets every
singular value to about eps * kappa(U), the small ones as well as the large ones.

Source: Demmel & Veselic 1992 (relative accuracy of Jacobi); Drmac & Veselic 2008 (QR preconditioning).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from . import EPS

LN2 = math.log(2.0)
DEAD = -2.0**50     # exponent of a row that is exactly zero: below anything a product can reach, still an exact integer
BLOCK = 16          # rows per Jacobi block, two blocks meet at a time: about the fastest of 8, 16, 32 at widths 64, 256
FLIPS = 4           # a flip divides the coupling of two rows by the ratio of their sizes, for a third of a sweep's time
MAX_SWEEPS = 40     # 3 to 8 are needed
ON_HOST = 128       # rows: on CUDA so small a matrix is thousands of kernels that have next to nothing to do
# A rotation that would change a squared row norm by less is left out. Inner products of orthogonal rows are known to
# a few eps only: with a tolerance of eps, rows of equal size were rotated for ever by their rounding.
TOLERANCE = 32 * EPS


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
    if u.device.type == "cuda" and u.shape[-2] <= ON_HOST:
        return tuple(part.to(u.device) for part in graded_singular_values(exponents.cpu(), u.cpu()))
    exponents, u = sort_rows(*normalize_rows(exponents, u))
    exponents, u, dependence = flip(exponents, u)
    dependence = dependence.nan_to_num(nan=1.0, posinf=1.0).cummax(-1).values   # 0 / 0 in dead rows
    exponents, u, _ = flip(exponents, u)
    for _ in range(FLIPS - 2):
        exponents, u, _ = flip(exponents, u)
    u = orthogonalize_rows(exponents, u)
    return log_row_norms(exponents, u).sort(dim=-1, descending=True).values, dependence


def coupled(exponents: Float[Tensor, "*batch rows"], gram: Float[Tensor, "*batch rows rows"],
            ) -> Float[Tensor, "*batch rows rows"] | Tensor:
    """Which pairs of rows, upper triangle, a rotation would still change; never those with NaN."""
    size = gram.diagonal(dim1=-2, dim2=-1)
    ratio = torch.exp2((2 * (exponents.unsqueeze(-2) - exponents.unsqueeze(-1))).clamp(-1000.0, 100.0))
    tangent = rotation(size.unsqueeze(-1), size.unsqueeze(-2), ratio, gram)
    return ((tangent * gram).abs() > TOLERANCE * size.unsqueeze(-2)).triu(1)


def rotation(size_p: Tensor, size_q: Tensor, ratio: Tensor, inner: Tensor) -> Tensor:
    """Tangent, divided by rho, of the Jacobi rotation of rows p and q; rho = 2**(e_q - e_p), `ratio` its square.

    rho -> 0 is a Gram-Schmidt step: the small row loses its part along the large one, the large one stays.
    """
    gap = size_p - ratio * size_q
    root = gap.abs() + (gap * gap + 4.0 * ratio * inner * inner).sqrt()
    return 2.0 * inner * torch.where(gap >= 0, 1.0, -1.0) / root


def orthogonalize_rows(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
                       ) -> Float[Tensor, "batch rows columns"]:
    """Rotate the rows of diag(2**e) U until all are orthogonal; returns the new U, same exponents.

    Block Jacobi: rows in blocks, two blocks meet at a time, all disjoint pairs of all members at once. The rotations
    of a meeting are found on its small triangular factor and applied to the long rows as one matrix product; a
    meeting whose rows are already orthogonal costs nothing.
    """
    rows = u.shape[-2]
    blocks = max(2, 2 * math.ceil(rows / (2 * BLOCK)))
    size = math.ceil(rows / blocks)
    padding = blocks * size - rows
    u = torch.nn.functional.pad(u, (0, 0, 0, padding))
    exponents = torch.nn.functional.pad(exponents, (0, padding), value=DEAD)
    meetings = meeting_rows(blocks, size).to(u.device)
    for _ in range(MAX_SWEEPS):
        busy = False
        for rows_met in meetings:
            busy |= rotate_meetings(exponents, u, rows_met)
        if not busy:
            break
    return u[:, :rows]


def rotate_meetings(exponents: Tensor, u: Tensor, rows_met: Tensor) -> bool:
    """Rotate, in place, the members and meetings whose rows are not yet orthogonal; False if there were none."""
    met = u[:, rows_met]                                               # (batch, meeting, row, column)
    member, meeting = coupled(exponents[:, rows_met], met @ met.mT).any(-1).any(-1).nonzero(as_tuple=True)
    if len(member) == 0:
        return False
    index = rows_met[meeting]
    met, grading = met[member, meeting], exponents[member.unsqueeze(-1), index]
    u[member.unsqueeze(-1), index] = accumulated_rotations(grading, met) @ met
    return True


def meeting_rows(blocks: int, size: int) -> Tensor:
    """Round-robin tournament of the blocks: (round, meeting, 2 * size) row indices, ascending in each meeting."""
    return (round_robin(blocks).sort(-1).values.unsqueeze(-1) * size + torch.arange(size)).flatten(-2)


def round_robin(players: int) -> Tensor:
    """(round, game, 2): every pair of an even number of players meets once, every player plays every round."""
    ring, rounds = list(range(1, players)), []
    for _ in range(players - 1):
        seats = [0, *ring]
        rounds.append([[seats[i], seats[-1 - i]] for i in range(players // 2)])
        ring = ring[1:] + ring[:1]
    return torch.tensor(rounds)


def accumulated_rotations(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
                          ) -> Float[Tensor, "batch rows rows"]:
    """One sweep of scale-free row rotations, as the matrix that applies them all.

    Found on the triangular factor of the rows, whose inner products are the rows' own; an error there delays
    convergence, it does not enter the result.
    """
    rows = u.shape[-2]
    r = torch.linalg.qr(u.mT, mode="r").R
    eye = torch.eye(rows, dtype=u.dtype, device=u.device).expand(len(u), rows, rows)
    work = torch.cat([r.mT, eye], -1).transpose(0, 1).contiguous()     # (row, batch, column): a row is contiguous
    grading = exponents.mT.contiguous()
    size = r.square().sum(-2).mT.contiguous()
    for pairs in round_robin(rows).sort(-1).values.to(u.device):
        rotate_pairs(work, grading, size, pairs[:, 0], pairs[:, 1], r.shape[-2])
    return work[..., r.shape[-2]:].transpose(0, 1)


def rotate_pairs(work: Tensor, grading: Tensor, size: Tensor, p: Tensor, q: Tensor, width: int) -> None:
    """Rotate rows p with rows q, in place; `size` holds the squared norms of the first `width` columns."""
    u_p, u_q, size_q = work[p], work[q], size[q]
    inner = (u_p[..., :width] * u_q[..., :width]).sum(-1)
    ratio = torch.exp2((2 * (grading[q] - grading[p])).clamp_(-1000.0, 100.0))
    tangent = rotation(size[p], size_q, ratio, inner)
    change = tangent * inner
    tangent = torch.where(change.abs() > TOLERANCE * size_q, tangent, 0.0)   # 0 / 0, dead rows: false
    cosine = (1.0 + ratio * tangent * tangent).rsqrt().unsqueeze(-1)
    work[p] = cosine * torch.addcmul(u_p, (ratio * tangent).unsqueeze(-1), u_q)
    work[q] = cosine * torch.addcmul(u_q, tangent.unsqueeze(-1), u_p, value=-1.0)
    size[p] += torch.where(tangent == 0, 0.0, ratio * change)
    size[q] -= torch.where(tangent == 0, 0.0, change)
