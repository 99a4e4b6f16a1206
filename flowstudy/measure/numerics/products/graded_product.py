"""A long product of matrices in factored form, Q diag(2**e) U, and its update by one more factor.

Q is well conditioned, U has rows of order one, and the sizes are in the integer exponents e. A factor A is absorbed by
one QR, A Q P = Q' R, then R P^T diag(2**e) U = diag(2**e') U'. Cholesky QR is used for factors of ordinary size and
conditioning (`cholesky_step`), Householder QR for all others (`householder_step`).

Source: David E. Stewart 1997, ETNA 5 (the graded product); Tomas, Chang, Scalettar & Bai 2012 (pre-pivoting: the
columns in order once, before the QR).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .graded_jacobi import DEAD, normalize_rows, power_ratio
from .product_error import GROWN, SAMPLES, hidden_share, lean_after, propagated, reordered, signs, taken_up

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
        whole = self
        if whole.samples.shape[1] != part.samples.shape[1]:
            whole, part = whole.with_room(), part.with_room()
        return replace(whole, **{name: value.index_copy(0, members, getattr(part, name))
                                 for name, value in vars(whole).items() if isinstance(value, Tensor)})

    def with_room(self) -> "Graded":
        """The same product, with samples of its angles: zero, which are not followed, where there were none."""
        if self.samples.shape[1]:
            return self
        samples = self.samples.new_zeros(len(self.angle), SAMPLES, *self.angle.shape[1:])
        return replace(self, samples=samples, drift=samples.new_zeros(samples.shape[:-1]))


def absorbed(state: Graded, q: Float[Tensor, "batch rows kept"], r: Float[Tensor, "batch kept directions"],
             rounding: Float[Tensor, "batch kept"], inverse: Float[Tensor, "batch kept"],
             dead: Bool[Tensor, "batch kept"] | None, *, tidy: bool = False,
             near: bool | Bool[Tensor, ""] | None = None) -> Graded:
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


def new_order(size: Float[Tensor, "batch directions"], ask: bool = True) -> Int[Tensor, "batch directions"] | None:
    """An order of the directions by decreasing size [bits]; None if they are nearly in order in all members.

    Args:
        ask: whether they are, for which a GPU waits; without it they get the order that they have.
    """
    unsorted = out_of_order(size)
    if ask and not unsorted.any():
        return None
    order = size.argsort(dim=-1, descending=True, stable=True)
    return torch.where(unsorted[:, None], order, torch.arange(size.shape[-1], device=size.device))


def in_order(state: Graded, order: Int[Tensor, "batch directions"]) -> Graded:
    """The same product, its directions in another order: but for q, which is about to be replaced.

    Where a direction overtakes another that leans towards it, the angle becomes an error of its own row of U.
    """
    exponents, samples = state.exponents.gather(-1, order), state.samples.shape[1]
    angle = reordered(state.angle, order)
    variance = state.variance.gather(-1, order) + taken_up(angle.triu(1).sqrt().unsqueeze(1), exponents, state.eps)
    orders = order.unsqueeze(1).expand(-1, samples, -1)
    lean = reordered(state.samples, orders)
    if samples:
        variance = variance + taken_up(lean.triu(1), exponents, state.eps)
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
    state = state.with_room()
    first = state.angle.sqrt().unsqueeze(1) * signs(state.angle.shape[-1], state.steps).to(state.angle)
    return replace(state, samples=torch.where(begin[:, None, None, None], first, state.samples))


def graded_times(r: Float[Tensor, "batch rows columns"], exponents: Float[Tensor, "batch columns"],
                 shift: Float[Tensor, "batch rows"], u: Float[Tensor, "batch columns inputs"],
                 near: bool | Bool[Tensor, ""] | None) -> Float[Tensor, "batch rows inputs"]:
    """diag(2**-(e + shift)) R diag(2**e) U, the zeros below R's diagonal left out block by block.

    Args:
        near: whether no row of a block lies too far from its first for a common scale: a tensor where the device is
            not to be asked; None: to be found out.
    """
    scaled = exponents[:, :r.shape[-2]] + shift
    blocks = [graded(r[:, i:i + ROWS, i:], exponents[:, i:], scaled[:, i:i + ROWS], near) @ u[:, i:]
              for i in range(0, r.shape[-2], ROWS)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -2)


def graded(r: Float[Tensor, "batch rows columns"], exponents: Float[Tensor, "batch columns"],
           scaled: Float[Tensor, "batch rows"], near: bool | Bool[Tensor, ""] | None,
           ) -> Float[Tensor, "batch rows columns"]:
    """diag(2**-scaled) R diag(2**e), exact but for entries below 2**-500.

    Scaling columns, then rows, takes a power of two of every row and column; where rows lie too far apart for that
    (dead ones always do), one of every entry.
    """
    if near is None:
        near = bool(near_enough(exponents, scaled, FAR).all())
    if near is False:
        return r * power_ratio(exponents, scaled)
    reference = exponents[:, :1]
    by_lines = (r * torch.exp2(exponents - reference).unsqueeze(-2)) * torch.exp2(reference - scaled).unsqueeze(-1)
    return by_lines if near is True else torch.where(near, by_lines, r * power_ratio(exponents, scaled))


def near_enough(exponents: Float[Tensor, "batch columns"], scaled: Float[Tensor, "batch rows"], limit: float,
                ) -> Bool[Tensor, "batch rows"]:
    """Rows whose size lies within `limit` bits of the size of the first row of their block."""
    rows = scaled.shape[-1]
    first = exponents[:, :rows:ROWS].repeat_interleave(ROWS, -1)[:, :rows]
    return (scaled - first).abs() < limit


def is_ordinary(state: Graded) -> bool:
    """All members are valid, and there is nothing of them to follow but Q, e, U, angles and variance."""
    return state.samples.shape[1] == 0 and not ((state.dead | state.hidden).any() or not state.valid.all())
