"""All singular values of a long product A_L ... A_1, as natural logs, each with its error.

The singular values of the multiplied product are rounding noise below eps times the largest: of the 64 values of 100
Gaussian 64 x 64 factors about 33. Here the product is never multiplied out.

1. QR pass. Q_0 random orthogonal; A_l Q_{l-1} = Q_l R_l. Only a factor's action on a matrix is needed.
2. R_L ... R_1 = diag(2**e) U, with integer exponents e and a U of order one, updated factor by factor.
3. `graded_jacobi` finds the singular values of diag(2**e) U.

The QR pass is backward stable in every factor, so the error is eps times the product's own sensitivity to its factors.

Source: Stewart 1997 (the graded product); Demmel & Veselic 1992, Drmac & Veselic 2008 (one-sided Jacobi);
Benettin et al. 1980 (QR along a product of matrices).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .batched_qr import batched_qr, row_sizes
from .graded_jacobi import DEAD, EPS, graded_singular_values, normalize_rows, power_ratio

Factor = Tensor | Callable[[Tensor], Tensor]

# Rank of a factor, its rows brought to one size: singular values above this times columns times the largest. Rounding
# stays below 1 here. The last pivot of an unpivoted QR would not do: with two equal rows of 64 Gaussian ones it was up
# to 900 eps sqrt(columns), where an earlier pivot happened to be small.
RANK_TOLERANCE = 8 * EPS
BLOCK_RATIO = 300.0      # several factors share one QR while max / min of diag R stays below: costs 1e-12 in a log
LARGEST_BLOCK = 16
SAFE_SQUARE = 2.0**200   # columns of Q' with squared norms in between this and its inverse need no scaling
TIDY_EVERY = 8           # QRs between two normalisations of U's rows; they drift by powers of two only
ROWS = 64                # of a triangular factor multiplied at once, with what stands right of them only
FAR = 500.0              # [bits] rows' sizes that far apart are not scaled by way of a common reference
SORT_SLACK = 4.0         # [bits] columns are put in order of size only where they are out of order by more
# With it, log_error was 3 to 1000 times the error against mpmath in 14 kinds of product.
ERROR_FACTOR = 16.0


@dataclass(frozen=True)
class ProductSpectrum:
    """Singular values of a product, per batch member.

    Attributes:
        log_singular_values: float64, natural log, descending, min(rows, columns) of the product many; -inf where the
            product is rank deficient, NaN everywhere in a member with NaN or infinite factors.
        log_error: estimated bound on the absolute error of each log value: eps times the sensitivity of the leading
            directions to rounding in each factor, followed along the product and added in quadrature; float64 factors
            taken as exact. 0 where the value is -inf.
        rank: number of finite values; -1 in a member with NaN or infinite factors.
    """

    log_singular_values: Float[Tensor, "*batch values"]
    log_error: Float[Tensor, "*batch values"]
    rank: Int[Tensor, "*batch"]


@dataclass(frozen=True)
class Graded:
    """The product so far, Q diag(2**e) U, member by member. The columns of Q (rows of U) are its directions."""

    q: Float[Tensor, "batch rows directions"]
    exponents: Float[Tensor, "batch directions"]        # whole numbers; DEAD where the direction is exactly zero
    u: Float[Tensor, "batch directions columns"]
    angle: Float[Tensor, "batch directions"]            # squared error of the angle to the next direction, over eps**2
    variance: Float[Tensor, "batch directions"]         # squared error of the log sizes so far, over eps**2
    valid: Bool[Tensor, " batch"]                       # no NaN or infinity so far
    untouched: Bool[Tensor, " batch"]                   # every factor so far was exactly the identity
    steps: int                                          # QRs so far


def product_svd(factors: Iterable[Factor], *, columns: int | None = None, batch_shape: tuple[int, ...] = (),
                device: torch.device | str | None = None, block: int | None = None, seed: int = 0) -> ProductSpectrum:
    """Natural logs of all singular values of A_L ... A_1, right in every one at any depth.

    Args:
        factors: A_1 (applied first) to A_L; each a real tensor (*batch, rows, columns), batch axes broadcasting, or a
            function from X (batch, columns, k) float64, batch axes flattened to one, to A X (batch, rows, k).
            Consumed once, in order: a generator keeps memory at a few factors.
        columns: columns of A_1; needed if A_1 is a function. So are `batch_shape`, if no tensor shows it first,
            and `device`.
        block: factors per QR; None measures: several while they are well conditioned together, else one. With None
            the choice is common to the batch, so a mate can change a value in its last digits; with a number not.
        seed: of the random orthogonal start, the same for every member. The global generator is not used.
    Returns:
        ProductSpectrum with the batch axes of the factors.

    Limits: rows of one factor may differ in size by 1e300, and zero rows (dead units) are exact. A factor whose rows,
    brought to one size, have a condition number beyond 1 / (8 eps columns), 1e13 or so, counts as singular; so columns
    of wild sizes lose directions: give W D as the two factors D, W. Entries 1e-308 of the largest are lost.

    Raises:
        ValueError: no factors, shapes that do not fit together, or `columns` missing.
        TypeError: a factor that is neither a real floating tensor nor callable.
    """
    call = "product_svd"
    if block is not None and block < 1:
        raise ValueError(f"{call}: `block` must be at least 1, got {block}.")
    first, rest = first_factor(call, factors)
    batch_shape = common_batch(first, batch_shape)
    state = start(call, first, columns, batch_shape, device, seed)
    columns = state.q.shape[-1]
    size, largest = block or 1, LARGEST_BLOCK
    while chunk := list(itertools.islice(rest, size)):
        advanced, ratio = advance(call, state, chunk)
        if block is None and len(chunk) > 1 and ratio > BLOCK_RATIO:
            for factor in chunk:   # conditioning too poor to share a QR
                state, _ = advance(call, state, [factor])
            size = largest = size // 2
            continue
        state = advanced
        if block is None and ratio ** 2 <= BLOCK_RATIO:
            size = min(2 * size, largest)
    return spectrum(state, batch_shape, columns)


def partial_product_svd(factors: Iterable[Factor], *, columns: int | None = None, batch_shape: tuple[int, ...] = (),
                        device: torch.device | str | None = None, seed: int = 0) -> Iterator[ProductSpectrum]:
    """The spectra of A_1, A_2 A_1, ..., A_L ... A_1, one by one: one QR pass, one Jacobi per partial product.

    Same arguments as `product_svd` with `block=1`, and the same values, bit for bit.
    """
    call = "partial_product_svd"
    first, rest = first_factor(call, factors)
    batch_shape = common_batch(first, batch_shape)
    state = start(call, first, columns, batch_shape, device, seed)
    columns = state.q.shape[-1]
    for factor in rest:
        state, _ = advance(call, state, [factor])
        yield spectrum(state, batch_shape, columns)


def first_factor(call: str, factors: Iterable[Factor]) -> tuple[Factor, Iterator[Factor]]:
    """The first factor, and all of them."""
    if isinstance(factors, Tensor) or not isinstance(factors, Iterable):
        raise TypeError(f"{call}: `factors` must be an iterable of factors, got {type(factors).__name__}. "
                        "Pass `[factor]` for one, `stack.unbind(0)` for a stack.")
    rest = iter(factors)
    first = next(rest, None)
    if first is None:
        raise ValueError(f"{call}: `factors` must hold at least one factor, got none.")
    first = check_factor(call, first)
    if isinstance(first, Tensor) and first.shape[-2] < first.shape[-1]:
        # 784 -> 50: A = L P, and the orthonormal rows of P change no singular value: the pass is 50 wide from the start
        first = torch.linalg.qr(first.detach().double().mT, mode="r").R.mT
    return first, itertools.chain([first], rest)


def common_batch(first: Factor, batch_shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(batch_shape, first.shape[:-2] if isinstance(first, Tensor) else ()))


def check_factor(call: str, factor: Factor) -> Factor:
    if isinstance(factor, Tensor):
        if not factor.is_floating_point():
            raise TypeError(f"{call}: a factor must be a real floating tensor, got {factor.dtype}.")
        if factor.ndim < 2 or 0 in factor.shape:
            raise ValueError(f"{call}: a factor must be of shape (*batch, rows, columns), none of them 0, "
                             f"got {tuple(factor.shape)}.")
    elif not callable(factor):
        raise TypeError(f"{call}: a factor must be a tensor or a function of one, got {type(factor).__name__}.")
    return factor


def start(call: str, first: Factor, columns: int | None, batch_shape: tuple[int, ...],
          device: torch.device | str | None, seed: int) -> Graded:
    """The empty product: Q_0 Haar distributed, so that no structure of the factors meets a special first column.

    With Q_0 = I a Jordan block's small values came out wrong in the second digit.
    """
    if isinstance(first, Tensor):
        columns, device = first.shape[-1], first.device
    if columns is None:
        raise ValueError(f"{call}: `columns` must be given when the first factor is a function, got None. "
                         "Pass the number of inputs of that factor.")
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64, generator=generator))
    q = (q * r.diagonal().sign()).to(device)
    members = torch.Size(batch_shape).numel()
    ones = torch.ones(members, columns, dtype=torch.float64, device=q.device)
    flags = torch.ones(members, dtype=torch.bool, device=q.device)
    return Graded(q=q.expand(members, -1, -1), exponents=0 * ones, u=torch.diag_embed(ones), angle=0 * ones,
                  variance=0 * ones, valid=flags, untouched=flags, steps=0)


def advance(call: str, state: Graded, chunk: list[Factor]) -> tuple[Graded, float]:
    """The product times the factors of the chunk, by one QR; and the largest max / min of its diag R in the batch."""
    m, exponent = apply_all(call, state, chunk, scaled=False)
    gram = m.mT @ m
    peak = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    if not ((peak < SAFE_SQUARE) & (peak > 1 / SAFE_SQUARE)).all():   # NaN compares false
        m, exponent = apply_all(call, state, chunk, scaled=True)
        gram = m.mT @ m
    valid = state.valid & exponent.isfinite()
    unchanged = same_as(m, state.q) & valid & (exponent == 0)
    state = replace(state, valid=valid, untouched=state.untouched & unchanged)
    if unchanged.all():
        return state, 1.0
    grown, ratio = absorb(state, m, gram, exponent.nan_to_num(nan=0.0))
    if unchanged.any():   # an exact identity leaves the state as it was, to the bit
        grown, ratio = keep(unchanged, state, grown), torch.where(unchanged, 1.0, ratio)
    return grown, float(ratio.max())


def keep(members: Bool[Tensor, " batch"], old: Graded, new: Graded) -> Graded:
    """The new state, but the old one for some members; both of the same shape."""
    return replace(new, **{name: torch.where(members.view(-1, *[1] * (value.ndim - 1)), getattr(old, name), value)
                           for name, value in vars(new).items() if isinstance(value, Tensor)})


def apply_all(call: str, state: Graded, chunk: list[Factor], *, scaled: bool,
              ) -> tuple[Float[Tensor, "batch rows directions"], Float[Tensor, " batch"]]:
    """A_j ... A_i Q / 2**exponent, and exponent; zeros in dead directions and, with NaN exponents, in lost members.

    Scaling costs passes over the data, so the caller tries without first; a member that needs none gets the same bits.
    """
    m, exponent = state.q, torch.zeros_like(state.exponents[:, 0])
    for factor in chunk:
        m, shift = apply(call, check_factor(call, factor), m, scaled)
        exponent = exponent + shift
    alive = (state.valid & exponent.isfinite()).unsqueeze(-1) & (state.exponents > DEAD / 2)
    return (m if alive.all() else torch.where(alive.unsqueeze(-2), m, 0.0)), exponent


def apply(call: str, factor: Factor, x: Float[Tensor, "batch inputs k"], scaled: bool,
          ) -> tuple[Float[Tensor, "batch outputs k"], Float[Tensor, " batch"]]:
    """A x / 2**shift, and shift."""
    members, inputs, _ = x.shape
    unscaled = torch.zeros(members, dtype=torch.float64, device=x.device)
    if isinstance(factor, Tensor):
        if factor.shape[-1] != inputs:
            raise ValueError(f"{call}: a factor of shape {tuple(factor.shape)} must have {inputs} columns to follow "
                             "what comes before it. `factors` begin with the one applied first.")
        a, shift = flatten_batch(call, factor, members), unscaled
        if scaled:
            a, shift = scale(a)
        return a @ x, shift.expand(members)
    y = factor(x)
    if y.ndim != 3 or y.shape[0] != members or y.shape[2] != x.shape[2]:
        raise ValueError(f"{call}: a factor's function must return ({members}, rows, {x.shape[2]}) for an argument of "
                         f"shape {tuple(x.shape)}, got {tuple(y.shape)}.")
    return scale(y.detach().double()) if scaled else (y.detach().double(), unscaled)


def flatten_batch(call: str, factor: Tensor, members: int) -> Float[Tensor, "batch rows columns"]:
    """(*batch, rows, columns) in float64 with one batch axis, of length `members` or 1."""
    flat = factor.detach().double().flatten(0, -3) if factor.ndim > 2 else factor.detach().double().unsqueeze(0)
    if len(flat) not in (1, members):
        raise ValueError(f"{call}: a factor of shape {tuple(factor.shape)} must fit a batch of {members}. "
                         "Give every factor the same batch axes, or none; pass `batch_shape` if the first has none.")
    return flat


def scale(a: Float[Tensor, "batch rows columns"],
          ) -> tuple[Float[Tensor, "batch rows columns"], Float[Tensor, " batch"]]:
    """Each member divided by the power of two that brings its largest entry into [0.5, 1), and its exponent.

    Entries from 2**-20 to 2**20 are left as they are. A member that is not finite becomes zeros, its exponent NaN.
    """
    peak = a.abs().amax((-2, -1))
    shift = torch.frexp(peak).exponent.to(a)
    shift = torch.where((shift.abs() <= 20) | (peak == 0), 0.0, shift).masked_fill(~peak.isfinite(), torch.nan)
    half = torch.exp2(-(shift / 2).floor()), torch.exp2(-(shift / 2).ceil())   # two steps: 2**1074 is no float64
    scaled = a * half[0][:, None, None] * half[1][:, None, None]
    return torch.where(shift.isnan()[:, None, None], 0.0, scaled), shift


def same_as(m: Tensor, q: Tensor) -> Bool[Tensor, " batch"]:
    """Members where m is q to the bit; looks at one column before it looks at all."""
    if m.shape != q.shape:
        return torch.zeros(len(m), dtype=torch.bool, device=m.device)
    same = (m[..., 0] == q[..., 0]).all(-1)
    return (m == q).all(-1).all(-1) if same.any() else same


def absorb(state: Graded, m: Float[Tensor, "batch rows directions"],
           gram: Float[Tensor, "batch directions directions"], exponent: Float[Tensor, " batch"],
           ) -> tuple[Graded, Float[Tensor, " batch"]]:
    """Q diag(2**e) U with Q replaced by 2**exponent m: one QR, R taken up by e and U. And max / min of diag R."""
    state, m, gram = in_order(state, m, gram)
    q, r, by_cholesky = batched_qr(m, gram=gram)
    kept = r.shape[-2]
    pivot = r.diagonal(dim1=-2, dim2=-1).abs()
    size, dead = pivot.amax(-1, keepdim=True), pivot == 0
    if not by_cholesky.all():
        row_size = row_sizes(m).sort(dim=-1, descending=True).values[:, :kept] * m.shape[-1] ** 0.5
        size = torch.where(by_cholesky[:, None], size, row_size)
        dead = dead.index_put((~by_cholesky,), lost_directions(m[~by_cholesky], kept))
        r = r.masked_fill(dead.unsqueeze(-1), 0.0)
    shift = torch.frexp(pivot).exponent.to(r)
    u = graded_times(r, state.exponents, shift, state.u)
    exponents = torch.where(dead, DEAD, state.exponents[:, :kept] + shift + exponent.unsqueeze(-1))
    if u.shape[-1] > kept:   # a bottleneck: U = L P, the orthonormal rows of P change no singular value
        u = torch.linalg.qr(u.mT, mode="r").R.mT
    if state.steps % TIDY_EVERY == 0 or not by_cholesky.all():
        exponents, u = normalize_rows(exponents, u)
    angle, variance = propagate_error(state.angle[:, :kept], state.variance[:, :kept], r, dead, size)
    ratio = pivot.amax(-1) / pivot.masked_fill(dead, torch.inf).amin(-1)
    return replace(state, q=q, exponents=exponents, u=u, angle=angle, variance=variance, steps=state.steps + 1), ratio


def graded_times(r: Float[Tensor, "batch rows columns"], exponents: Float[Tensor, "batch columns"],
                 shift: Float[Tensor, "batch rows"], u: Float[Tensor, "batch columns inputs"],
                 ) -> Float[Tensor, "batch rows inputs"]:
    """diag(2**-(e + shift)) R diag(2**e) U, the zeros below R's diagonal left out block by block."""
    scaled = exponents[:, :r.shape[-2]] + shift
    return torch.cat([graded(r[:, i:i + ROWS, i:], exponents[:, i:], scaled[:, i:i + ROWS]) @ u[:, i:]
                      for i in range(0, r.shape[-2], ROWS)], -2)


def graded(r: Float[Tensor, "batch rows columns"], exponents: Float[Tensor, "batch columns"],
           scaled: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch rows columns"]:
    """diag(2**-scaled) R diag(2**e), exact but for entries below 2**-500.

    Scaling columns, then rows, takes a power of two of every row and column; where rows lie too far apart for that
    (dead ones always do), one of every entry.
    """
    reference = exponents[:, :1]
    if ((scaled - reference).abs() < FAR).all():
        return (r * torch.exp2(exponents - reference).unsqueeze(-2)) * torch.exp2(reference - scaled).unsqueeze(-1)
    return r * power_ratio(exponents, scaled)


def propagate_error(angle: Float[Tensor, "batch k"], variance: Float[Tensor, "batch k"],
                    r: Float[Tensor, "batch k columns"], dead: Bool[Tensor, "batch k"], size: Tensor,
                    ) -> tuple[Float[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """Squared errors, in units of eps, of the angles between neighbouring directions and of their log sizes.

    A QR of condition number kappa, that of its leading block, turns the directions by eps * kappa and changes the logs
    by as much. An angle grows by the ratio of the pivots, r_{i+1} / r_i, and a turned direction i picks up
    r_{i,i+1} / r_i of it in its size. To first order, neighbours only, signs taken as random.
    """
    pivot = r.diagonal(dim1=-2, dim2=-1).abs()
    condition = torch.where(dead, 1.0, size / pivot).cummax(-1).values.square()
    here = pivot[:, :-1].square()
    growth = torch.where(dead[:, 1:], 0.0, pivot[:, 1:].square() / here)
    shear = torch.where(dead[:, 1:], 0.0, r[:, :, :r.shape[-2]].diagonal(1, -2, -1).square() / here)
    picked_up = (angle[:, :-1] * shear).clamp_(max=1 / EPS ** 2)
    pad = torch.nn.functional.pad
    angle = pad(angle[:, :-1] * growth, (0, 1)).clamp_(max=1 / EPS ** 2) + condition
    return angle, variance + condition + pad(picked_up, (0, 1)) + pad(picked_up, (1, 0))


def lost_directions(m: Float[Tensor, "batch rows columns"], kept: int) -> Bool[Tensor, "batch kept"]:
    """The last directions, as many as the numerical rank falls short; sizes of rows, zero rows included, do not count.

    The last, because the start is random: the span of the first j directions is generic, and whole as long as it can.
    """
    size = row_sizes(m).unsqueeze(-1)
    s = torch.linalg.svdvals(torch.where(size > 0, m / size, 0.0))
    rank = (s > RANK_TOLERANCE * m.shape[-1] * s[:, :1]).sum(-1)
    return torch.arange(kept, device=m.device) >= rank.unsqueeze(-1)


def in_order(state: Graded, m: Float[Tensor, "batch rows directions"],
             gram: Float[Tensor, "batch directions directions"]) -> tuple[Graded, Tensor, Tensor]:
    """Directions by decreasing size of their column in m diag(2**e), where that is not nearly so: keeps U of order one.

    Stewart 1997; Bai, Lee, Li, Xu 2011 ("pre-pivoting").
    """
    size = 0.5 * gram.diagonal(dim1=-2, dim2=-1).log2() + state.exponents
    unsorted = (size > size.cummin(-1).values + SORT_SLACK).any(-1)
    if not unsorted.any():
        return state, m, gram
    order = size.argsort(dim=-1, descending=True, stable=True)
    order = torch.where(unsorted[:, None], order, torch.arange(size.shape[-1], device=m.device))
    rows = order.unsqueeze(-1).expand(-1, -1, state.u.shape[-1])
    state = replace(state, exponents=state.exponents.gather(-1, order), u=state.u.gather(-2, rows),
                    angle=state.angle.gather(-1, order), variance=state.variance.gather(-1, order))
    gram = gram.gather(-1, order.unsqueeze(-2).expand_as(gram)).gather(-2, order.unsqueeze(-1).expand_as(gram))
    return state, m.gather(-1, order.unsqueeze(-2).expand_as(m)), gram


def spectrum(state: Graded, batch_shape: tuple[int, ...], columns: int) -> ProductSpectrum:
    """The singular values of Q diag(2**e) U. Q is well conditioned only: its own R joins the product first."""
    r = torch.linalg.qr(state.q, mode="r").R
    u = (r * power_ratio(state.exponents, state.exponents)) @ state.u
    u = torch.where(state.untouched[:, None, None], state.u, u)
    log_values, dependence = graded_singular_values(state.exponents, u)
    # smaller values are never claimed to be more certain: the estimates of close neighbours may be swapped
    error = (state.variance + dependence.square()).cummax(-1).values.sqrt() + log_values.abs()
    log_error = ERROR_FACTOR * EPS * torch.where(log_values == -torch.inf, 0.0, error)
    missing = min(state.q.shape[-2], columns) - log_values.shape[-1]   # a bottleneck inside the product
    log_values = torch.nn.functional.pad(log_values, (0, missing), value=-torch.inf)
    log_error = torch.nn.functional.pad(log_error, (0, missing))
    rank = torch.where(state.valid, log_values.isfinite().sum(-1), -1)
    invalid = ~state.valid.unsqueeze(-1)
    shape = (*batch_shape, log_values.shape[-1])
    return ProductSpectrum(log_values.masked_fill(invalid, torch.nan).reshape(shape),
                           log_error.masked_fill(invalid, torch.nan).reshape(shape), rank.reshape(batch_shape))
