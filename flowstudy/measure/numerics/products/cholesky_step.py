"""One more factor of a long product by Cholesky QR, which does for a factor of ordinary size and conditioning."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .batched_qr import RATIO_LIMIT, cholesky_qr
from .graded_product import (
    FAR,
    Graded,
    absorbed,
    angles_begin_to_grow,
    in_order,
    near_enough,
    new_order,
    sampled,
)

# [bits] Rows nearer to each other than that are no farther than FAR apart after a factor that Cholesky QR is safe for:
# its pivots are less than 2**100, and more than the inverse of that over RATIO_LIMIT.
NEAR = FAR - 150.0


def by_cholesky(state: Graded, m: Float[Tensor, "batch rows directions"],
                gram: Float[Tensor, "batch directions directions"], row_size: Float[Tensor, "batch rows"],
                ) -> tuple[Graded, Bool[Tensor, " batch"], float]:
    """Q diag(2**e) U with Q replaced by m, by Cholesky QR.

    Args:
        gram: m^T m.
        row_size: norms of the factor's rows, to which the rounding of m is relative.
    Returns:
        The new product, the members for which it is safe, and the largest pivot ratio, by which that is judged.
    """
    grown, safe, ratio = grown_by(state, m, gram, row_size, ordinary=False, ask=True)
    safe = safe & (ratio <= RATIO_LIMIT)   # NaN compares false
    return grown, safe, float(ratio.masked_fill(~state.valid, 1.0).max())


def ordinary_step(state: Graded, m: Float[Tensor, "batch rows directions"],
                  gram: Float[Tensor, "batch directions directions"], row_size: Float[Tensor, "batch rows"],
                  ) -> tuple[Graded, float] | None:
    """What `by_cholesky` gives, bit for bit, where nothing is out of the ordinary; None where something is.

    It is the case of nearly every factor. Whether it is this one is asked twice only, since a GPU waits each time.
    """
    if not state.ordinary or len(m) == 0 or not usual(state, m, row_size):
        return None
    grown, facts = attempted(state, m, gram, row_size)
    return accepted(grown, facts.tolist())


def usual(state: Graded, m: Float[Tensor, "batch rows directions"], row_size: Float[Tensor, "batch rows"],
          ) -> Bool[Tensor, ""]:
    """Whether the factors of all members are finite, and do something to the directions."""
    finite = row_size.isfinite().all()
    return finite & (m[..., 0] != state.q[..., 0]).any(-1).all() if m.shape == state.q.shape else finite


def attempted(state: Graded, m: Float[Tensor, "batch rows directions"],
              gram: Float[Tensor, "batch directions directions"], row_size: Float[Tensor, "batch rows"],
              ) -> tuple[Graded, Float[Tensor, "3"]]:
    """The product after the step, and by what is judged whether it may be taken: see `accepted`.

    On a GPU without a wait: both sides of every choice are computed there.
    """
    grown, safe, ratio = grown_by(state, m, gram, row_size, ordinary=True, ask=state.q.device.type == "cpu")
    ratio, begins = ratio.max(), angles_begin_to_grow(grown).any()
    return grown, torch.stack([safe.all().to(ratio), begins.to(ratio), ratio])


def accepted(grown: Graded, facts: list[float]) -> tuple[Graded, float] | None:
    """The product after an ordinary step, and its pivot ratio; None if the step may not be taken.

    Args:
        facts: whether the QR was safe, whether angles begin to grow that were not to be followed so far, and the ratio.
    """
    safe, begins, ratio = facts
    if not safe or not ratio <= RATIO_LIMIT:
        return None
    grown = replace(grown, untouched=torch.zeros_like(grown.untouched), steps=grown.steps + 1)
    return replace(sampled(grown), ordinary=False) if begins else grown, ratio


def grown_by(state: Graded, m: Float[Tensor, "batch rows directions"],
             gram: Float[Tensor, "batch directions directions"], row_size: Float[Tensor, "batch rows"],
             *, ordinary: bool, ask: bool) -> tuple[Graded, Bool[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The product after the step, the members for which the QR is safe, and the ratio of its pivots.

    Args:
        ordinary: no direction is dead and no member lost; what is not safe holds rubbish.
        ask: whether sizes are in order, and near, for which a GPU waits; without it both sides of each are computed.
    """
    order = new_order(columns_size(state, gram), ask=ask)
    if order is not None:
        state, m, gram = columns_in_order(state, m, gram, order)
    dead = near = None
    if ordinary:
        near = near_enough(state.exponents, state.exponents, NEAR).all()
        near = bool(near) if ask else near
    else:
        dead = state.dead | ~state.valid.unsqueeze(-1)
    q, r, safe = cholesky_qr(m, gram, dead)
    pivots, noise = r.diagonal(dim1=-2, dim2=-1), noise_of(q, row_size)
    smallest = (pivots if dead is None else pivots.masked_fill(dead, torch.inf)).cummin(-1).values
    inverse = 1 / smallest
    if dead is not None:
        noise, inverse = noise.masked_fill(dead, 0.0), inverse.masked_fill(dead, 0.0)
    return absorbed(state, q, r, noise, inverse, dead, near=near), safe, pivot_ratio(r, smallest, row_size)


def columns_size(state: Graded, gram: Float[Tensor, "batch directions directions"],
                 ) -> Float[Tensor, "batch directions"]:
    """Sizes of the product's directions [bits], which its columns are taken in the order of."""
    return 0.5 * gram.diagonal(dim1=-2, dim2=-1).log2() + state.exponents


def columns_in_order(state: Graded, m: Tensor, gram: Tensor, order: Tensor) -> tuple[Graded, Tensor, Tensor]:
    row, column = order.unsqueeze(-2), order.unsqueeze(-1)
    gram = gram.gather(-1, row.expand_as(gram)).gather(-2, column.expand_as(gram))
    return in_order(state, order), m.gather(-1, row.expand_as(m)), gram


def pivot_ratio(r: Tensor, smallest: Tensor, row_size: Float[Tensor, "batch rows"]) -> Float[Tensor, " batch"]:
    """The largest pivot, or the factor's own size if larger, over the smallest pivot."""
    magnitude = torch.linalg.vector_norm(row_size, dim=-1) / r.shape[-1]**0.5
    return torch.maximum(r.diagonal(dim1=-2, dim2=-1).amax(-1), magnitude) / smallest[:, -1]


def noise_of(q: Float[Tensor, "batch rows directions"], row_size: Float[Tensor, "batch rows"]) -> Tensor:
    """The rounding of m, relative to the factor's rows, in each row of R."""
    return (row_size.square().unsqueeze(-2) @ q.square()).squeeze(-2).sqrt()
