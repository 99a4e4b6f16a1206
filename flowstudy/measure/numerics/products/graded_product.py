"""A long product of matrices in factored form, Q diag(2**e) U, and its update by one more factor.

Q is well conditioned, U has rows of order one, and the sizes are in the integer exponents e. A factor A is absorbed by
one QR, A Q P = Q' R, then R P^T diag(2**e) U = diag(2**e') U'. Cholesky QR is used for factors of ordinary size and
conditioning (`cholesky_step`), `careful` for all others; it also distinguishes exact zeros from values that are not
resolved.

Source: David E. Stewart 1997, ETNA 5 (the graded product); Tomas, Chang, Scalettar & Bai 2012 (pre-pivoting: the
columns in order once, before the QR).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import structural_rank
from torch import Tensor

from flowstudy.measure.numerics import EPS

from .batched_qr import row_stable_qr
from .factor_pieces import Scaling, tame_pieces
from .graded_jacobi import DEAD, normalize_rows, power_ratio
from .product_error import (
    ERROR_FACTOR,
    GROWN,
    LARGEST_ANGLE,
    LARGEST_ERROR,
    SAMPLES,
    hidden_share,
    lean_after,
    propagated,
    reordered,
    rescaled,
    signs,
    taken_up,
)

ROWS = 64                # rows of a triangular factor that are multiplied at once, without the zeros left of them
FAR = 500.0              # [bits] rows whose sizes differ by more are not scaled by way of a common reference
TIDY_EVERY = 8           # QRs between two normalisations of U's rows; they drift by powers of two only
SORT_SLACK = 4.0         # [bits] columns are sorted by size only if they are out of order by more than this


@dataclass(frozen=True)
class Graded:
    """The product so far, Q diag(2**e) U, member by member. The columns of Q (rows of U) are its directions."""

    q: Float[Tensor, "batch rows directions"]
    exponents: Float[Tensor, "batch directions"]        # whole numbers; DEAD where the direction is exactly zero
    u: Float[Tensor, "batch directions columns"]
    angle: Float[Tensor, "batch directions directions"]  # squared errors of the angles between them, over eps**2
    variance: Float[Tensor, "batch directions"]         # squared errors of the log sizes so far, over eps**2
    samples: Float[Tensor, "batch sample directions directions"]  # of the angles over eps; none until they grow large
    drift: Float[Tensor, "batch sample directions"]     # what these have added to the log sizes, over eps
    loudest: Float[Tensor, " batch"]                    # largest angle that a single factor has made, over eps
    hidden: Bool[Tensor, "batch directions"]            # not resolved: the size is an upper bound
    valid: Bool[Tensor, " batch"]                       # no NaN or infinity so far
    untouched: Bool[Tensor, " batch"]                   # every factor so far was exactly the identity
    ordinary: bool                                      # all valid, no direction dead or hidden, no samples followed
    steps: int                                          # factors, or blocks of them, so far
    eps: float                                          # relative accuracy of the factors' entries

    @property
    def dead(self) -> Bool[Tensor, "batch directions"]:
        return self.exponents <= DEAD / 2

    def part(self, members: Int[Tensor, " part"]) -> "Graded":
        return replace(self, **{name: value[members] for name, value in vars(self).items()
                                if isinstance(value, Tensor)})

    def with_part(self, members: Int[Tensor, " part"], part: "Graded") -> "Graded":
        return replace(self, **{name: value.index_copy(0, members, getattr(part, name))
                                for name, value in vars(self).items() if isinstance(value, Tensor)})


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
    state = in_order(state, order)
    rounding = ((unit * row_size + left / state.eps).unsqueeze(-2) @ q.abs()).squeeze(-2)
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
        r = bounded(r, state, rounding * (inverse * pivots(r)).nan_to_num(nan=1.0).clamp(min=1.0), hidden, dead)
        inverse = inverse_norms(r, dead)
    r = r.masked_fill(dead.unsqueeze(-1), 0.0)
    rounding, inverse = rounding.masked_fill(dead, 0.0), inverse.masked_fill(dead, 0.0)
    grown = absorbed(state, q, r, rounding, inverse, dead, tidy=True)
    return replace(grown, hidden=grown.hidden | hidden)


def pivots(r: Float[Tensor, "batch kept columns"]) -> Float[Tensor, "batch kept"]:
    return r.diagonal(dim1=-2, dim2=-1).abs()


def inverse_norms(r: Float[Tensor, "batch kept columns"], dead: Bool[Tensor, "batch kept"],
                  ) -> Float[Tensor, "batch kept"]:
    """Norms of the columns of R^-1, R's leading square without its dead directions; infinite from a zero pivot on."""
    square = r[..., :r.shape[-2]].masked_fill(dead.unsqueeze(-1) | dead.unsqueeze(-2), 0.0)
    singular = ((pivots(square) == 0) & ~dead).cummax(-1).values
    square = square.masked_fill(singular.unsqueeze(-1) | singular.unsqueeze(-2), 0.0)
    square = square + torch.diag_embed((dead | singular).to(r))
    inverse = torch.linalg.solve_triangular(square, torch.eye(len(r[0]), dtype=r.dtype, device=r.device), upper=True)
    peak = inverse.abs().amax(-2)
    norms = peak * torch.linalg.vector_norm(inverse / peak.unsqueeze(-2), dim=-2)
    return norms.masked_fill(singular, torch.inf)


def bounded(r: Float[Tensor, "batch kept columns"], state: Graded, rounding: Float[Tensor, "batch kept"],
            hidden: Bool[Tensor, "batch kept"], dead: Bool[Tensor, "batch kept"],
            ) -> Float[Tensor, "batch kept columns"]:
    """R with the rows of unresolved directions replaced by a diagonal that bounds what they may be."""
    rounding = ERROR_FACTOR * state.eps * rounding.nan_to_num(posinf=0.0)
    alive = ~state.dead.unsqueeze(-2)
    ratio = power_ratio(state.exponents, state.exponents[:, :r.shape[-2]])
    share = ((r.abs() + rounding.unsqueeze(-1)) * ratio).masked_fill(~alive, 0.0).triu()
    bound = torch.diag_embed(share.amax(-1) * r.shape[-1]**0.5)
    bound = torch.nn.functional.pad(bound, (0, r.shape[-1] - r.shape[-2]))
    return torch.where(hidden.unsqueeze(-1), bound, r)


def structural_ranks(pattern: Float[Tensor, "batch rows columns"]) -> Int[Tensor, " batch"]:
    """The largest rank that the matrices' zeros allow."""
    ranks = [structural_rank(csr_array(member.cpu().numpy() != 0)) for member in pattern]
    return torch.tensor(ranks, device=pattern.device)


def absorbed(state: Graded, q: Float[Tensor, "batch rows kept"], r: Float[Tensor, "batch kept directions"],
             rounding: Float[Tensor, "batch kept"], inverse: Float[Tensor, "batch kept"],
             dead: Bool[Tensor, "batch kept"] | None, *, tidy: bool = False, near: bool | None = None) -> Graded:
    """The product with Q replaced by q, R multiplied into e and U, and the error estimates updated.

    Args:
        dead: None in an ordinary product, where no direction is.
        tidy: bring U's rows to one size, which every `TIDY_EVERY`th step does in any case.
        near: see `graded_times`.
    """
    kept = r.shape[-2]
    shift = torch.frexp(r.diagonal(dim1=-2, dim2=-1)).exponent.to(r)
    u = graded_times(r, state.exponents, shift, state.u, near)
    exponents = state.exponents[:, :kept] + shift
    exponents = exponents if dead is None else torch.where(dead, DEAD, exponents)
    if u.shape[-1] > kept:   # a bottleneck: U = L P, the orthonormal rows of P change no singular value
        u = torch.linalg.qr(u.mT, mode="r").R.mT.contiguous()
    if tidy or state.steps % TIDY_EVERY == 0:
        exponents, u = normalize_rows(exponents, u)
    angle, variance = propagated(state.angle, state.variance, r, rounding, inverse, dead, state.eps)
    loudest = torch.maximum(state.loudest, rounding.amax(-1) * inverse.amax(-1))
    grown = replace(state, q=q, exponents=exponents, u=u, angle=angle, variance=variance, loudest=loudest,
                    samples=state.samples[:, :, :kept, :kept], drift=state.drift[..., :kept],
                    hidden=state.hidden[:, :kept])
    return grown if dead is None else with_the_extraordinary(state, grown, r, rounding, inverse, dead)


def with_the_extraordinary(state: Graded, grown: Graded, r: Float[Tensor, "batch kept directions"],
                           rounding: Float[Tensor, "batch kept"], inverse: Float[Tensor, "batch kept"],
                           dead: Bool[Tensor, "batch kept"]) -> Graded:
    """The samples of angles and the hidden directions of `state`, followed to `grown`."""
    variance, samples, drift = grown.variance, grown.samples, grown.drift
    if state.samples.shape[1]:
        # Of the members whose samples are followed; those of the others are zero, and stay so.
        one = state.samples.flatten(1).any(-1).nonzero().squeeze(-1)
        lean, added, taken = lean_after(state.samples[one], r[one], rounding[one], inverse[one], dead[one],
                                        grown.exponents[one], state.eps, state.steps)
        samples = torch.zeros_like(samples).index_copy(0, one, lean)
        drift, variance = drift.index_add(0, one, added), variance.index_add(0, one, taken)
    if state.hidden.any():
        variance = variance + hidden_share(r, state.exponents, state.hidden, dead, state.eps)
    return replace(grown, variance=variance, samples=samples, drift=drift, hidden=grown.hidden & ~dead)


def out_of_order(size: Float[Tensor, "batch directions"]) -> Bool[Tensor, " batch"]:
    return (size > size.cummin(-1).values + SORT_SLACK).any(-1)


def new_order(size: Float[Tensor, "batch directions"]) -> Int[Tensor, "batch directions"] | None:
    """An order of the directions by decreasing size [bits]; None if they are nearly in order in all members."""
    unsorted = out_of_order(size)
    if not unsorted.any():
        return None
    order = size.argsort(dim=-1, descending=True, stable=True)
    return torch.where(unsorted[:, None], order, torch.arange(size.shape[-1], device=size.device))


def in_order(state: Graded, order: Int[Tensor, "batch directions"]) -> Graded:
    """The same product, its directions in another order: but for q, which is about to be replaced.

    Where a direction overtakes another that leans towards it, the angle becomes an error of its own row of U.
    """
    exponents, samples = state.exponents.gather(-1, order), state.samples.shape[1]
    angle = reordered(state.angle, order)
    variance = state.variance.gather(-1, order) + taken_up(angle.sqrt().unsqueeze(1), exponents, state.eps)
    orders = order.unsqueeze(1).expand(-1, samples, -1)
    lean = reordered(state.samples, orders)
    if samples:
        variance = variance + taken_up(lean, exponents, state.eps)
    return replace(state, exponents=exponents, u=state.u.gather(-2, order.unsqueeze(-1).expand_as(state.u)),
                   angle=angle.tril(-1), variance=variance.clamp(max=state.eps**-2), samples=lean.tril(-1),
                   drift=state.drift.gather(-1, orders), hidden=state.hidden.gather(-1, order))


def angles_begin_to_grow(state: Graded) -> Bool[Tensor, " batch"]:
    """Members with an angle larger than any single factor makes."""
    return state.angle.amax((-2, -1)).sqrt() > GROWN * state.loudest


def sampled(state: Graded) -> Graded:
    """Samples of the angles between directions are followed from where one is larger than any single factor makes.

    Member by member: samples that are all zero are not followed.
    """
    begin = angles_begin_to_grow(state) & ~state.samples.flatten(1).any(-1)
    if not begin.any():
        return state
    samples, drift = state.samples, state.drift
    if samples.shape[1] == 0:
        samples = samples.new_zeros(len(begin), SAMPLES, *state.angle.shape[1:])
        drift = samples.new_zeros(samples.shape[:-1])
    first = state.angle.sqrt().unsqueeze(1) * signs(state.angle.shape[-1], state.steps).to(state.angle)
    return replace(state, samples=torch.where(begin[:, None, None, None], first, samples), drift=drift)


def graded_times(r: Float[Tensor, "batch rows columns"], exponents: Float[Tensor, "batch columns"],
                 shift: Float[Tensor, "batch rows"], u: Float[Tensor, "batch columns inputs"], near: bool | None,
                 ) -> Float[Tensor, "batch rows inputs"]:
    """diag(2**-(e + shift)) R diag(2**e) U, the zeros below R's diagonal left out block by block.

    Args:
        near: whether no row of a block lies too far from its first for a common scale; None: to be found out.
    """
    scaled = exponents[:, :r.shape[-2]] + shift
    blocks = [graded(r[:, i:i + ROWS, i:], exponents[:, i:], scaled[:, i:i + ROWS], near) @ u[:, i:]
              for i in range(0, r.shape[-2], ROWS)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -2)


def graded(r: Float[Tensor, "batch rows columns"], exponents: Float[Tensor, "batch columns"],
           scaled: Float[Tensor, "batch rows"], near: bool | None) -> Float[Tensor, "batch rows columns"]:
    """diag(2**-scaled) R diag(2**e), exact but for entries below 2**-500.

    Scaling columns, then rows, takes a power of two of every row and column; where rows lie too far apart for that
    (dead ones always do), one of every entry.
    """
    if near is None:
        near = bool(near_enough(exponents, scaled, FAR).all())
    if not near:
        return r * power_ratio(exponents, scaled)
    reference = exponents[:, :1]
    return (r * torch.exp2(exponents - reference).unsqueeze(-2)) * torch.exp2(reference - scaled).unsqueeze(-1)


def near_enough(exponents: Float[Tensor, "batch columns"], scaled: Float[Tensor, "batch rows"], limit: float,
                ) -> Bool[Tensor, "batch rows"]:
    """Rows whose size lies within `limit` bits of the size of the first row of their block."""
    rows = scaled.shape[-1]
    first = exponents[:, :rows:ROWS].repeat_interleave(ROWS, -1)[:, :rows]
    return (scaled - first).abs() < limit


def is_ordinary(state: Graded) -> bool:
    """All members are valid, and there is nothing of them to follow but Q, e, U, angles and variance."""
    return state.samples.shape[1] == 0 and not ((state.dead | state.hidden).any() or not state.valid.all())
