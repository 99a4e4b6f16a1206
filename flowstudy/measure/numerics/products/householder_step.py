"""One more factor of a long product by Householder QR, for a factor whose rows, columns or singular values lie far
apart, or that has zeros: exact zeros are told from values that are not resolved."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import structural_rank
from torch import Tensor

from flowstudy.measure.numerics import EPS

from .batched_qr import householder_qr, row_stable_qr
from .factor_pieces import Scaling, tame_pieces
from .graded_jacobi import DEAD, power_ratio
from .graded_product import SORT_SLACK, Graded, absorbed, in_order, new_order, sampled
from .product_error import ERROR_FACTOR, LARGEST_ANGLE, LARGEST_ERROR, rescaled, taken_up


def careful(state: Graded, a: Float[Tensor, "batch rows columns"]) -> Graded:
    """The product times one factor whose rows, columns or singular values are far apart, or that has zeros.

    If its rows or columns differ widely in size, their scales are split off first as exact factors of their own.
    """
    finite = a.isfinite().flatten(1).all(-1)
    state = replace(state, valid=state.valid & finite)
    for piece in tame_pieces(torch.where(state.valid[:, None, None], a, 0.0)):
        if isinstance(piece, Scaling):
            members = (piece.exponents < 0).any(-1).nonzero().squeeze(-1)
            part = state.part(members)
            m = part.q * torch.exp2(piece.exponents[members]).unsqueeze(-1)
            part = by_householder(part, m, m.abs(), EPS / state.eps)
            state = part if len(members) == len(finite) else state.with_part(members, part)
        else:
            state = replace(state, exponents=torch.where(state.dead, DEAD, state.exponents + piece.shift.unsqueeze(-1)))
            q = state.q.masked_fill(state.dead.unsqueeze(-2), 0.0)
            state = by_householder(state, piece.matrix @ q, piece.matrix.abs() @ q.abs(), 1.0,
                                   pattern=piece.matrix.masked_fill((q == 0).all(-1).unsqueeze(-2), 0.0))
    return state


def by_householder(state: Graded, m: Float[Tensor, "batch rows directions"],
                   terms: Float[Tensor, "batch rows directions"], unit: float, *,
                   pattern: Float[Tensor, "batch rows inputs"] | None = None) -> Graded:
    """Q diag(2**e) U with Q replaced by m, by a QR that is stable in every row.

    Args:
        terms: sums of the absolute values of the terms in m's entries: where such a sum is 0, m is exactly 0.
        unit: rounding of m, in units of state.eps.
        pattern: the factor's matrix, of which only the places of zeros matter.
    """
    peak = terms.amax(-2)
    dead = state.dead | (peak == 0)
    state = with_what_stays(state, dead & ~state.dead)
    shift = torch.frexp(peak).exponent.to(m)
    scale = torch.exp2(-shift).unsqueeze(-2)
    m, terms = (torch.where(dead.unsqueeze(-2), 0.0, x * scale) for x in (m, terms))
    state = replace(state, exponents=torch.where(dead, DEAD, state.exponents + shift),
                    angle=rescaled(state.angle, torch.where(dead, 0.0, 2 * shift)).clamp(max=LARGEST_ANGLE),
                    samples=rescaled(state.samples, torch.where(dead, 0.0, shift).unsqueeze(1)))
    size = torch.where(dead, -torch.inf, m.abs().amax(-2).log2()) + state.exponents
    order = new_order(torch.where(dead, DEAD, size.clamp(min=DEAD / 4)))
    if order is not None:
        state, m, terms = in_order(state, order), *(x.gather(-1, order.unsqueeze(-2).expand_as(x)) for x in (m, terms))
    row_size = terms.amax(-1)
    q, r, left, order = row_stable_qr(m, row_size, state.exponents)
    state = sampled(in_order(state, order))   # a factor of wild columns may make an angle large, and act on it at once
    noise = unit * row_size + left / state.eps
    rounding = (noise.unsqueeze(-2) @ q.abs()).squeeze(-2)
    rank = torch.minimum((row_size > 0).sum(-1), (~state.dead).sum(-1))
    place = torch.arange(r.shape[-2], device=m.device)
    dead = place >= rank.unsqueeze(-1)
    inverse = inverse_norms(r, dead)
    hidden = (~(ERROR_FACTOR * state.eps * rounding * inverse <= LARGEST_ERROR) & ~dead).cummax(-1).values & ~dead
    if pattern is not None and hidden.any():
        rank = torch.minimum(rank, structural_ranks(pattern))
        dead = place >= rank.unsqueeze(-1)
        hidden = hidden & ~dead
    if hidden.any():
        r = bounded(r, state, rounding, hidden, dead)
        inverse = inverse_norms(r, dead)
    outside = rounding_outside(m, noise, rounding.masked_fill(~dead, 0.0))
    r = r.masked_fill(dead.unsqueeze(-1), 0.0)
    rounding, inverse = rounding.masked_fill(dead, 0.0), inverse.masked_fill(dead, 0.0)
    grown = absorbed(state, q, r, rounding, inverse, dead, tidy=True)
    grown = with_unfollowed(state, grown, rounding, inverse, outside)
    return replace(grown, hidden=grown.hidden | hidden)


def with_unfollowed(state: Graded, grown: Graded, rounding: Float[Tensor, "batch kept"],
                    inverse: Float[Tensor, "batch kept"], outside: Float[Tensor, " batch"]) -> Graded:
    """The new product, its error with that of angles which `propagated` does not follow: upwards, and outside."""
    upwards = taken_up(overtaken(state, rounding, inverse), grown.exponents, state.eps)
    variance = grown.variance + upwards + (outside.unsqueeze(-1) * inverse).square()
    made = (rounding.unsqueeze(-1) * inverse.unsqueeze(-2)).tril(-1)
    loudest = torch.maximum(state.loudest, made.flatten(1).amax(-1)) if made.shape[-1] else state.loudest
    return replace(grown, loudest=loudest, variance=variance.clamp(max=state.eps**-2))


def with_what_stays(state: Graded, gone: Bool[Tensor, "batch directions"]) -> Graded:
    """The product before a factor that takes these directions to exactly zero, its error with what they leave behind.

    Where such a direction leans towards another, that part of it is not taken to zero, and is an error of the other.
    """
    if not gone.any():
        return state
    left = [taken_up(one.masked_fill(~gone[:, None, None], 0.0), state.exponents, state.eps)
            for one in (state.angle.sqrt().unsqueeze(1), state.samples) if one.shape[1]]
    return replace(state, variance=(state.variance + sum(left)).clamp(max=state.eps**-2))


def rounding_outside(m: Float[Tensor, "batch rows directions"], noise: Float[Tensor, "batch rows"],
                     idle: Float[Tensor, "batch kept"]) -> Float[Tensor, " batch"]:
    """The rounding of m in directions outside the product, towards which all of its directions come to lean.

    No angle with them is followed: the next factor is taken to stretch them about as much as the direction that leans.

    Args:
        noise: of m's rows.
        idle: its part in the directions of Q that are exactly zero in the product; 0 in the others.
    """
    parts, (rows, columns) = [idle], m.shape[-2:]
    if rows > columns:
        beyond = householder_qr(torch.nn.functional.pad(m, (0, rows - columns)))[0][..., columns:]
        parts.append((noise.unsqueeze(-2) @ beyond.abs()).squeeze(-2))
    return torch.linalg.vector_norm(torch.cat(parts, -1), dim=-1)


def overtaken(state: Graded, rounding: Float[Tensor, "batch kept"], inverse: Float[Tensor, "batch kept"],
              ) -> Float[Tensor, "batch one kept kept"]:
    """By how much rounding leans directions towards larger ones that pivoting has put after them; elsewhere zero.

    Where the directions are in the order of their sizes, such angles are no more than what `propagated` counts.
    """
    exponents = state.exponents[:, :rounding.shape[-1]]
    later_and_larger = (exponents.unsqueeze(-2) > exponents.unsqueeze(-1) + SORT_SLACK).triu(1)
    return (rounding.unsqueeze(-1) * inverse.unsqueeze(-2)).masked_fill(~later_and_larger, 0.0).unsqueeze(1)


def inverse_norms(r: Float[Tensor, "batch kept columns"], dead: Bool[Tensor, "batch kept"],
                  ) -> Float[Tensor, "batch kept"]:
    """Norms of the columns of R^-1, R's leading square without its dead directions; infinite from a zero pivot on."""
    square = r[..., :r.shape[-2]].masked_fill(dead.unsqueeze(-1) | dead.unsqueeze(-2), 0.0)
    singular = ((square.diagonal(dim1=-2, dim2=-1) == 0) & ~dead).cummax(-1).values
    square = square.masked_fill(singular.unsqueeze(-1) | singular.unsqueeze(-2), 0.0)
    square = square + torch.diag_embed((dead | singular).to(r))
    inverse = torch.linalg.solve_triangular(square, torch.eye(len(r[0]), dtype=r.dtype, device=r.device), upper=True)
    peak = inverse.abs().amax(-2)
    norms = peak * torch.linalg.vector_norm(inverse / peak.unsqueeze(-2), dim=-2)
    return norms.masked_fill(singular, torch.inf)


def bounded(r: Float[Tensor, "batch kept columns"], state: Graded, rounding: Float[Tensor, "batch kept"],
            hidden: Bool[Tensor, "batch kept"], dead: Bool[Tensor, "batch kept"],
            ) -> Float[Tensor, "batch kept columns"]:
    """R with the rows of unresolved directions replaced by a diagonal that bounds what they may be.

    It is what is seen of such a row, and the rounding in it, which grows by what the rows above take out of a column.
    """
    kept, unknown = r.shape[-2], hidden | dead
    resolved = r.masked_fill(unknown.unsqueeze(-1), 0.0)
    square = resolved[..., :kept] + torch.diag_embed(unknown.to(r))
    taken = torch.linalg.vector_norm(torch.linalg.solve_triangular(square, resolved, upper=True), dim=-2)
    growth = taken.hypot(torch.ones_like(taken)).unsqueeze(-2)
    rounding = ERROR_FACTOR * state.eps * rounding.unsqueeze(-1) * growth
    ratio = power_ratio(state.exponents, state.exponents[:, :kept])
    share = ((r.abs() + rounding) * ratio).masked_fill(state.dead.unsqueeze(-2), 0.0).triu()
    bound = torch.diag_embed(share.amax(-1) * r.shape[-1]**0.5)
    bound = torch.nn.functional.pad(bound, (0, r.shape[-1] - kept))
    return torch.where(hidden.unsqueeze(-1), bound, r)


def structural_ranks(pattern: Float[Tensor, "batch rows columns"]) -> Int[Tensor, " batch"]:
    """The largest rank that the matrices' zeros allow."""
    ranks = [structural_rank(csr_array(member.cpu().numpy() != 0)) for member in pattern]
    return torch.tensor(ranks, device=pattern.device)
