r"""The largest singular values of a Jacobian too large to write down, from products with it and its transpose.

Block Golub-Kahan-Lanczos with full reorthogonalisation and thick restart. Blocks, for two reasons: a singular value
that repeats (identity-like, orthogonal and convolutional nets) appears once per Krylov block vector, and a block of
products is one vectorised pass through the net.

Libraries weighed, and why none is used here. scipy `svds` is numpy on the CPU, so every product would cross over; of
300 values, eight of them 1 and the rest spread from 0.9 down, its ARPACK route (single vectors, on J^T J) returned the
10 largest wrong by 11 % without a word, PROPACK gave up and LOBPCG was 1e-4 off (scipy 1.17). `torch.svd_lowrank` and
`torch.lobpcg` want a matrix, or J^T J, on which values below 1e-8 of the largest are lost. PRIMME's `svds` is block and
sound, but again numpy, and one more thing to compile; SLEPc brings MPI and PETSc. matfree is for JAX; curvlinops and
primate run single-vector Lanczos on symmetric operators.

Source: Golub & Kahan 1965 (bidiagonalisation); Golub, Luk & Overton 1981 (block Lanczos for singular values);
Baglama & Reichel 2005 (thick restart); Giraud, Langou & Rozloznik 2005 (why two passes of Gram-Schmidt are enough).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from flowstudy.refusal import RefusalError

from .linear_map import LinearMap

OVERSAMPLING = 2         # block vectors beyond k: the last of the k values converges as fast as the gap behind them
BASIS_MEMORY = 2**29     # bytes of Krylov basis, both sides together, before a restart
BASIS_BLOCKS = 24        # ... and never more than so many blocks, since each step is orthogonalised against the basis
PRODUCT_BLOCKS = 500     # blocks of products after which the search ends without having converged


@dataclass(frozen=True)
class Extremes:
    """Singular values from one end of the spectrum.

    Attributes:
        log_values: (k,) float64 on the CPU, natural log; the largest first (the smallest first, from
            `smallest_singular_values`). -inf beyond the numerical rank: nothing left above `LinearMap.floor` times the
            largest. NaN everywhere if a product has NaN or infinite entries.
        residuals: (k,) sqrt(|J v - s u|**2 + |J^T u - s v|**2) / s_1, from products made for the purpose. A bound: J
            has a singular value within residual * s_1 of s, and k different ones within the root of the residuals'
            square sum. Where s is apart from the rest its error goes with residual**2. At -inf: the floor.
        products: number of vectors that J or its transpose was applied to.
        converged: every residual is below tolerance * s / s_1, or at rounding level.
    """

    log_values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    products: int
    converged: bool


@dataclass(frozen=True)
class Bidiagonal:
    """J right_j = sum_i core_ij left_i exactly; J^T left_i leaves the right basis by `coupling` @ fresh alone.

    Rows of `right`, `left` and `fresh` are orthonormal, and on the device; `core` and `coupling` are on the CPU. `core`
    is block bidiagonal until a restart.
    """

    right: Float[Tensor, "columns inputs"]
    left: Float[Tensor, "rows outputs"]
    core: Float[Tensor, "rows columns"]
    fresh: Float[Tensor, "block inputs"]        # the next directions; none when the Krylov space is exhausted
    coupling: Float[Tensor, "rows block"]
    scale: float        # largest length of a product so far: a lower bound of s_1; NaN if a product had one
    products: int

    def values(self) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Ritz values, descending, and the residual |J^T u - s v| of each."""
        p, s, _ = torch.linalg.svd(self.core, full_matrices=False)
        return s, torch.linalg.vector_norm(p.mT @ self.coupling, dim=1)


def largest_singular_values(linear_map: LinearMap, k: int, *, block: int | None = None, tolerance: float = 1e-8,
                            max_products: int | None = None, seed: int = 0) -> Extremes:
    """The k largest singular values, in natural log, each with a residual that bounds its error.

    Ends when k values have converged, when the Krylov space is exhausted (then exact to rounding, and -inf beyond the
    rank) or when `max_products` are spent; `converged` tells. Values that have not converged are lower bounds.

    Args:
        linear_map: J.
        k: how many; at most min(inputs, outputs).
        block: vectors per product, at least k (fewer would count a value that repeats k times `block` times, and say
            so nowhere); None: k + 2.
        tolerance: on each residual, relative to its own singular value; at rounding level no more is asked.
        max_products: vectors that J or its transpose may be applied to; None: 500 blocks.
        seed: of the random start. The global generator is not used.

    Raises:
        ValueError: k, block, tolerance or max_products out of range.
    """
    block = check_extremes("largest_singular_values", linear_map, k, block, tolerance, max_products)
    budget = (max_products or PRODUCT_BLOCKS * block) - 2 * k   # the last 2 k state the residuals
    generator = torch.Generator().manual_seed(seed)
    narrow, log_scale = near_one(linear_map.narrow, generator)
    limit = max(k + 3 * block, min(BASIS_BLOCKS * block, BASIS_MEMORY // (8 * (narrow.inputs + narrow.outputs))))
    state, settled = started(narrow, block, generator), False
    while not settled and state.products + 2 * block <= budget:
        if len(state.right) + len(state.fresh) > limit:
            state = restarted(state, k + block)
        state = grown(state, narrow)
        if math.isnan(state.scale):
            nothing = torch.full((k,), torch.nan, dtype=torch.float64)
            return Extremes(nothing, nothing.clone(), state.products, False)
        s, residual = state.values()
        # Exhausted: the start has seen min(block, repeats) vectors of every value; with block >= k that is enough.
        settled = not len(state.fresh) or (len(s) >= k and within(residual[:k], s[:k], 0.5 * tolerance, narrow.floor))
    found = stated(state, narrow, k, tolerance, settled)
    return replace(found, log_values=found.log_values + log_scale)


def smallest_singular_values(inverse: LinearMap, k: int, *, block: int | None = None, tolerance: float = 1e-8,
                             max_products: int | None = None, seed: int = 0) -> Extremes:
    """The k smallest singular values of a square J whose inverse can be applied, smallest first.

    They are the largest of the inverse, upside down; so the residuals are the inverse's, relative to its norm, 1 / s_k
    of J. A product of square factors has such an inverse: solve with each factor in turn. From products with J alone
    the small values cannot be had to any relative accuracy, and it is not tried. inf: too large for the inverse to see.

    Args:
        inverse: `forward` solves J x = y for each row y, `backward` solves with the transpose.
        k, block, tolerance, max_products, seed: as for `largest_singular_values`.
    """
    if inverse.inputs != inverse.outputs:
        raise RefusalError(f"smallest_singular_values: `inverse` must be square, got {inverse.inputs} inputs and "
                           f"{inverse.outputs} outputs. Use the dense route for a Jacobian that is not.")
    largest = largest_singular_values(inverse, k, block=block, tolerance=tolerance, max_products=max_products,
                                      seed=seed)
    return replace(largest, log_values=-largest.log_values)


def check_extremes(call: str, linear_map: LinearMap, k: int, block: int | None, tolerance: float,
                   max_products: int | None) -> int:
    """Check the arguments and return the block size."""
    side = min(linear_map.inputs, linear_map.outputs)
    if not 1 <= k <= side:
        raise RefusalError(f"{call}: `k` must be from 1 to {side}, the number of singular values of a "
                           f"{linear_map.outputs} x {linear_map.inputs} Jacobian, got {k}. "
                           f"Pass k={max(1, min(k, side))}.")
    if block is not None and block < k:
        raise RefusalError(f"{call}: `block` must be at least k = {k}, got {block}. Pass None for k + {OVERSAMPLING}.")
    if not 0 < tolerance < 1:
        raise RefusalError(f"{call}: `tolerance` must be between 0 and 1, got {tolerance}. 1e-8 is usual.")
    block = min(block or k + OVERSAMPLING, side)
    if max_products is not None and max_products < 2 * (block + k) + 1:
        raise RefusalError(f"{call}: `max_products` must be at least 2 (block + k) + 1 = {2 * (block + k) + 1}, "
                           f"got {max_products}. Pass None for a default.")
    return block


def within(residual: Tensor, s: Tensor, tolerance: float, floor: float) -> bool:
    return bool((residual <= torch.clamp(tolerance * s, min=floor * s[0].item())).all())


def near_one(linear_map: LinearMap, generator: torch.Generator) -> tuple[LinearMap, float]:
    """J over a power of two near its size, and the log of that: squares of a vanishing Jacobian would underflow."""
    draw = torch.randn(1, linear_map.inputs, generator=generator, dtype=torch.float64).to(linear_map.device)
    size = linear_map.forward(draw).abs().amax().item()
    if not 0 < size < math.inf:
        return linear_map, 0.0
    exponent = max(math.frexp(size)[1], -1000)   # 2**1000 is still a number
    factor = math.ldexp(1.0, -exponent)

    def over(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda rows: factor * product(rows)

    return (replace(linear_map, forward=over(linear_map.forward), backward=over(linear_map.backward)),
            exponent * math.log(2))


def started(linear_map: LinearMap, block: int, generator: torch.Generator) -> Bidiagonal:
    """The state before the first step: random orthonormal directions and an empty basis."""
    inputs, outputs, device = linear_map.inputs, linear_map.outputs, linear_map.device
    draw = torch.randn(block, inputs, generator=generator, dtype=torch.float64)
    fresh, none = torch.linalg.qr(draw.mT).Q.mT.to(device), draw[:0]
    return Bidiagonal(right=none.to(device), left=none.new_zeros(0, outputs, device=device), core=none.new_zeros(0, 0),
                      fresh=fresh, coupling=none.new_zeros(0, block), scale=0.0,
                      products=1)   # the one that `near_one` made


def grown(state: Bidiagonal, linear_map: LinearMap) -> Bidiagonal:
    """The state after one more step: J applied to the fresh directions, then J^T to the result."""
    image = linear_map.forward(state.fresh)
    if not image.isfinite().all():
        return replace(state, scale=math.nan, products=state.products + len(image))
    scale = max(state.scale, longest(image))
    known, new, left = split(image, state.left, linear_map.floor * scale)
    rows, columns = state.core.shape
    core = state.core.new_zeros(rows + len(left), columns + len(image))
    core[:rows, :columns] = state.core
    core[:rows, columns:] = known.mT
    core[rows:, columns:] = new.mT
    right = torch.cat([state.right, state.fresh])
    back = linear_map.backward(left) if len(left) else left.new_zeros(0, linear_map.inputs)
    products = state.products + len(image) + len(left)
    if not back.isfinite().all():
        return replace(state, scale=math.nan, products=products)
    scale = max(scale, longest(back))
    _, beyond, fresh = split(back, right, linear_map.floor * scale)
    fresh, beyond = fresh[:linear_map.inputs - len(right)], beyond[:, :linear_map.inputs - len(right)]
    coupling = torch.cat([beyond.new_zeros(rows, len(fresh)), beyond])
    return Bidiagonal(right, torch.cat([state.left, left]), core, fresh, coupling, scale, products)


def restarted(state: Bidiagonal, keep: int) -> Bidiagonal:
    """The leading Ritz triplets in place of the whole basis; J^T of each leaves them by the fresh directions alone."""
    p, s, qh = torch.linalg.svd(state.core, full_matrices=False)
    p, s, qh = p[:, :keep], s[:keep], qh[:keep]
    device = state.right.device
    return replace(state, right=qh.to(device) @ state.right, left=p.mT.to(device) @ state.left, core=s.diag(),
                   coupling=p.mT @ state.coupling)


def stated(state: Bidiagonal, linear_map: LinearMap, k: int, tolerance: float, settled: bool) -> Extremes:
    """The first k Ritz values with residuals from products of their own."""
    p, s, qh = torch.linalg.svd(state.core, full_matrices=False)
    s, device = s[:k], state.right.device
    values = torch.full((k,), 0.0 if settled else torch.nan, dtype=torch.float64)
    residuals = torch.full((k,), linear_map.floor if settled else torch.inf, dtype=torch.float64)
    top = s[0].item() if len(s) else 0.0
    if top > 0:
        u, v = p.mT[:k].to(device) @ state.left, qh[:k].to(device) @ state.right
        relative = (s / top).to(device).unsqueeze(1)
        misfit = torch.cat([linear_map.forward(v) / top - relative * u, linear_map.backward(u) / top - relative * v], 1)
        values[:len(s)], residuals[:len(s)] = s, torch.linalg.vector_norm(misfit, dim=1).cpu()
        zero = values <= linear_map.floor * top
        values[zero], residuals[zero] = 0.0, residuals[zero].clamp(min=linear_map.floor)
        settled = settled and within(residuals * top, values, tolerance, 2 * linear_map.floor)
    return Extremes(values.log(), residuals, state.products + 2 * len(s), settled)


def split(rows: Float[Tensor, "rows size"], basis: Float[Tensor, "known size"], floor: float,
          ) -> tuple[Float[Tensor, "rows known"], Float[Tensor, "rows new"], Float[Tensor, "new size"]]:
    """rows = known @ basis + beyond @ new, the rows of `new` orthonormal and at right angles to the basis.

    Directions in which the rows are no larger than `floor` are dropped. Coefficients come on the CPU.
    """
    known = rows @ basis.mT
    rows = rows - known @ basis
    q, r = torch.linalg.qr(rows.mT)
    _, sizes, vh = torch.linalg.svd(r.mT, full_matrices=False)
    new = vh[sizes > floor] @ q.mT
    # A second pass, at unit length: after the first, a direction that was small in `rows` is orthogonal to the basis
    # only up to the rounding errors of the large ones.
    new = torch.linalg.qr((new - (new @ basis.mT) @ basis).mT).Q.mT
    return known.cpu(), (rows @ new.mT).cpu(), new


def longest(rows: Tensor) -> float:
    return torch.linalg.vector_norm(rows, dim=1).amax().item() if len(rows) else 0.0
