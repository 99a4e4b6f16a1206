"""All singular values of a long product A_L ... A_1, as natural logs, each with its error.

The singular values of the multiplied product are rounding noise below eps times the largest: of the 64 values of 100
Gaussian 64 x 64 factors about 33. Here the product is never multiplied out.

1. QR pass. Q_0 random orthogonal; A_l Q_{l-1} = Q_l R_l. Only a factor's action on a matrix is needed.
2. R_L ... R_1 = diag(2**e) U, with integer exponents e and a U of order one, updated factor by factor.
3. `graded_jacobi` finds the singular values of diag(2**e) U.

The QR pass is backward stable in every factor, and in every row of it, so the error is eps times the product's own
sensitivity to its factors; `product_error` follows it along.

Source: David E. Stewart 1997, ETNA 5 (the graded product); G. W. Stewart 1995, ETNA 3 (QR of graded matrices);
Demmel & Veselic 1992, Drmac & Veselic 2008 (one-sided Jacobi); Benettin et al. 1980 (QR along a product of matrices).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowstudy.arguments import a_real, a_whole, instance_of, optional, takes
from flowstudy.measure.numerics import EPS
from flowstudy.refusal import RefusalError
from flowstudy.torch_arguments import check_torch_device

from .cholesky_step import by_cholesky
from .factors import MatrixLike, apply_all, first_factor, flatten_batch, matrix_of
from .graded_jacobi import graded_singular_values, log_row_norms, power_ratio
from .graded_product import Graded, in_order, is_ordinary, sampled
from .householder_step import careful
from .product_error import ERROR_FACTOR, LARGEST_ERROR, final_error
from .recorded_step import OrdinarySteps

BLOCK_RATIO = 300.0      # several factors share one QR while their conditioning stays below: costs 1e-12 in a log
LARGEST_BLOCK = 16


@dataclass(frozen=True)
class ProductSpectrum:
    """Singular values of a product, per batch member.

    Attributes:
        log_singular_values: float64, natural log, descending, min(rows, columns) of the product many. -inf: exactly
            zero, because of zero rows or columns or of a bottleneck; these come last of all. NaN: not zero as far as
            the zeros tell, but not resolved by factors of that accuracy; these come after all that are known. NaN
            everywhere in a member with NaN or infinite factors.
        log_error: estimated bound on the absolute error of each log value: the accuracy of the factors times the
            sensitivity of the value to each of them, followed along the product and added in quadrature. At most 1,
            infinite where the value is NaN for not being resolved, 0 where it is -inf.
        rank: number of finite values; -1 in a member with NaN or infinite factors.
        below_floor: number of values that are not resolved; 0 in a member with NaN or infinite factors.
    """

    log_singular_values: Float[Tensor, "*batch values"]
    log_error: Float[Tensor, "*batch values"]
    rank: Int[Tensor, "*batch"]
    below_floor: Int[Tensor, "*batch"]


@takes(batch_shape=instance_of((tuple, list, torch.Size), "a shape"), block=optional(a_whole(1)),
       eps=a_real("a number"), seed=a_whole(0), columns=optional(a_whole(1)),
       device=optional(check_torch_device))
def product_svd(factors: Iterable[MatrixLike], *, columns: int | None = None, batch_shape: tuple[int, ...] = (),
                device: torch.device | str | None = None, block: int | None = None, eps: float = EPS,
                seed: int = 0) -> ProductSpectrum:
    """Natural logs of all singular values of A_L ... A_1, each right within its stated error, at any depth.

    Args:
        factors: A_1 (applied first) to A_L; each a real tensor (*batch, rows, columns), batch axes broadcasting, or a
            function from X (batch, columns, k) float64, batch axes flattened to one, to A X (batch, rows, k).
            Consumed once, in order: a generator keeps memory at a few factors.
        columns: columns of A_1; needed if A_1 is a function. So are `batch_shape`, if no tensor shows it first,
            and `device`.
        block: factors per QR; None measures: several while they are well conditioned together, else one. With None
            the choice is common to the batch, so a mate can change a value in its last digits; with a number it does
            so only where the first factor has more columns than rows, or rows or columns of a factor lie far apart.
        eps: relative accuracy of the factors' entries: `torch.finfo(torch.float32).eps` if they were computed in
            float32. `log_error` and what counts as resolved follow it. The computation is in float64 all the same.
        seed: of the random orthogonal start, the same for every member. The global generator is not used.
    Returns:
        ProductSpectrum with the batch axes of the factors.

    Limits: rows of one factor, and columns, may differ by the whole range of float64, and zero rows and columns (dead
    units) are exact. A factor whose rows and columns, brought to one size, have a condition number beyond
    1 / (16 eps), 1e14 or so, has values that are not resolved: they are NaN, and so is whatever may be smaller.

    Raises:
        ValueError: no factors, shapes that do not fit together, an axis of 0, `columns` missing, `block` or `eps` out
            of range.
        TypeError: a factor that is neither a real floating tensor nor callable.

    >>> halves = [torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64))] * 2000     # 0.5^2000 underflows
    >>> (product_svd(halves).log_singular_values / math.log(2)).round(decimals=6).tolist()
    [0.0, -2000.0]
    """
    call = "product_svd"
    if block is not None and block < 1:
        raise RefusalError(f"{call}: `block` must be at least 1, got {block}.")
    state, rest, ends = begin(call, factors, columns, batch_shape, device, eps, seed)
    size, largest, steps = block or 1, LARGEST_BLOCK, OrdinarySteps()
    while chunk := list(itertools.islice(rest, size)):
        advanced, ratio = advance(call, state, chunk, steps)
        if len(chunk) > 1 and (advanced is None or (block is None and ratio > BLOCK_RATIO)):
            for factor in chunk:   # conditioning too poor to share a QR
                state, _ = advance(call, state, [factor], steps)
            if block is None:
                size = largest = size // 2
            continue
        state = advanced
        if block is None and ratio ** 2 <= BLOCK_RATIO:
            size = min(2 * size, largest)
    return spectrum(state, *ends)


def partial_product_svd(factors: Iterable[MatrixLike], *, columns: int | None = None, batch_shape: tuple[int, ...] = (),
                        device: torch.device | str | None = None, eps: float = EPS,
                        seed: int = 0) -> Iterator[ProductSpectrum]:
    """The spectra of A_1, A_2 A_1, ..., A_L ... A_1, one by one: one QR pass, one Jacobi per partial product.

    Same arguments as `product_svd` with `block=1`, and the same values, bit for bit.
    """
    call = "partial_product_svd"
    state, rest, ends = begin(call, factors, columns, batch_shape, device, eps, seed)
    steps = OrdinarySteps()
    for factor in rest:
        state, _ = advance(call, state, [factor], steps)
        yield spectrum(state, *ends)


# --- the start -------------------------------------------------------------------------------------------------------


def begin(call: str, factors: Iterable[MatrixLike], columns: int | None, batch_shape: tuple[int, ...],
          device: torch.device | str | None, eps: float, seed: int,
          ) -> tuple[Graded, Iterator[MatrixLike], tuple[tuple[int, ...], int]]:
    """The empty product, all the factors, and what `spectrum` needs: the batch axes and the product's columns."""
    if not EPS <= eps < 1:
        raise RefusalError(f"{call}: `eps` must be from {EPS:.3g}, float64's own, to below 1, got {eps}. "
                           "Pass `torch.finfo(dtype).eps` of the precision the factors were computed in.")
    if 0 in batch_shape:
        raise RefusalError(f"{call}: `batch_shape` must have no axis of 0, got {tuple(batch_shape)}. A product of no "
                           "matrices has no singular values.")
    first, rest = first_factor(call, factors)
    batch_shape = tuple(torch.broadcast_shapes(batch_shape, first.shape[:-2] if isinstance(first, Tensor) else ()))
    if isinstance(first, Tensor):
        columns, device = first.shape[-1], first.device
        first = narrowed(first, seed)
    state = start(call, first, columns, batch_shape, device, eps, seed)
    return state, itertools.chain([first], rest), (batch_shape, columns)


def narrowed(first: Float[Tensor, "*batch rows columns"], seed: int) -> Tensor:
    """A wide first factor, such as 784 -> 50, made square: A = L P, where the orthonormal rows of P can be dropped.

    They change no singular value. Each row of L has an error relative to the row's norm. A random rotation spreads it
    over the row, so that no small entry of the triangular L is taken for an exact one. A factor whose columns differ
    widely in size, where that error would hide the small ones, is left as it is.
    """
    a = first.detach().double()
    rows, columns = a.shape[-2:]
    peak = a.abs().amax(-2)
    finite = a.isfinite().all(-1).all(-1)
    tame = (peak < 2.0**100) & (peak > 2.0**-100) & (peak.amax(-1, keepdim=True) < 2.0**10 * peak)
    if rows >= columns or not (tame.all(-1) | ~finite).all():
        return first
    lower = torch.linalg.qr(a.masked_fill(~finite[..., None, None], 0.0).mT, mode="r").R.mT
    return (lower @ haar(rows, seed + 1).to(a.device)).masked_fill(~finite[..., None, None], torch.nan)


def haar(size: int, seed: int) -> Float[Tensor, "size size"]:
    """A random orthogonal matrix, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


def start(call: str, first: MatrixLike, columns: int | None, batch_shape: tuple[int, ...],
          device: torch.device | str | None, eps: float, seed: int) -> Graded:
    """The empty product: Q_0 Haar distributed, so that no structure of the factors meets a special first column.

    With Q_0 = I a Jordan block's small values came out wrong in the second digit.
    """
    if columns is None:
        raise RefusalError(f"{call}: `columns` must be given when the first factor is a function, got None. "
                           "Pass the number of inputs of that factor.")
    q = haar(first.shape[-1] if isinstance(first, Tensor) else columns, seed).to(device)
    members, width = torch.Size(batch_shape).numel(), len(q)
    ones = torch.ones(members, width, dtype=torch.float64, device=q.device)
    flags = torch.ones(members, dtype=torch.bool, device=q.device)
    return Graded(q=q.expand(members, -1, -1), exponents=0 * ones, u=torch.diag_embed(ones),
                  angle=ones.new_zeros(members, width, width), variance=0 * ones,
                  samples=ones.new_zeros(members, 0, width, width), drift=ones.new_zeros(members, 0, width),
                  loudest=0 * ones[:, 0], hidden=ones < 0, valid=flags,
                  untouched=flags, ordinary=True, steps=0, eps=eps)


# --- one factor ------------------------------------------------------------------------------------------------------


def advance(call: str, state: Graded, chunk: list[MatrixLike],
            steps: OrdinarySteps) -> tuple[Graded | None, float]:
    """Multiply the product by the factors of the chunk, with one QR.

    The second result is the largest ratio in the batch by which digits cancel: the largest pivot, or the product of the
    factors' own sizes if larger, over the smallest pivot.  Members for which it is too large for Cholesky QR are
    computed by `careful`, which takes one factor at a time; if the chunk has several, the first result is None.
    """
    if len(chunk) > 1 and any(not isinstance(factor, Tensor) for factor in chunk):
        return None, math.inf   # how large a function's factor is cannot be seen
    m, row_size = apply_all(call, state.q, chunk)
    gram = None if m.shape[-2] < m.shape[-1] else m.mT @ m   # of a bottleneck it would be singular
    if gram is not None and (step := steps.step(state, m, gram, row_size)) is not None:
        return step
    state = without_lost(call, state, chunk, row_size)
    unchanged = identities(call, state, chunk, m)
    state = replace(state, untouched=state.untouched & unchanged)
    if unchanged.all():
        return state, 1.0
    if gram is None:
        grown, safe, ratio = None, torch.zeros_like(unchanged), math.inf
    else:
        gone = state.dead | ~state.valid.unsqueeze(-1)
        m, gram = m.masked_fill(gone.unsqueeze(-2), 0.0), gram.masked_fill(gone.unsqueeze(-2) | gone.unsqueeze(-1), 0.0)
        grown, safe, ratio = by_cholesky(state, m, gram, row_size)
        safe = safe | unchanged | ~state.valid
    if not safe.all():
        if len(chunk) > 1:
            return None, math.inf
        members = (~safe).nonzero().squeeze(-1)
        part, ratio = careful(state.part(members), matrix_of(call, chunk[0], state.q, members)), math.inf
        grown = part if len(members) == len(safe) else grown.with_part(members, part)
    if unchanged.any():   # an exact identity leaves the state as it was, to the bit
        members = unchanged.nonzero().squeeze(-1)
        grown = grown.with_part(members, state.part(members))
    grown = sampled(replace(grown, steps=state.steps + 1))
    return replace(grown, ordinary=is_ordinary(grown)), ratio


def without_lost(call: str, state: Graded, chunk: list[MatrixLike], row_size: Float[Tensor, "batch rows"]) -> Graded:
    """Members with NaN or infinity in a factor are no longer valid; looks closer only where a norm is not finite."""
    if row_size.isfinite().all():
        return state
    for factor in chunk:
        if isinstance(factor, Tensor):
            finite = flatten_batch(call, factor, len(row_size)).isfinite().all(-1).all(-1)
            state = replace(state, valid=state.valid & finite)
    return state


def identities(call: str, state: Graded, chunk: list[MatrixLike], m: Tensor) -> Bool[Tensor, " batch"]:
    """Valid members in which every factor of the chunk is exactly the identity; looks closer only where m is Q."""
    same = same_as(m, state.q) & state.valid
    members = same.nonzero().squeeze(-1)
    if len(members):   # m may be Q by rounding alone
        for factor in chunk:
            a = matrix_of(call, factor, state.q, members)
            one = torch.eye(a.shape[-2], a.shape[-1], dtype=a.dtype, device=a.device)
            same = same.index_copy(0, members, same[members] & (a == one).flatten(1).all(-1))
    return same


def same_as(m: Tensor, q: Tensor) -> Bool[Tensor, " batch"]:
    """Members where m is q to the bit; looks at one column before it looks at all."""
    if m.shape != q.shape:
        return torch.zeros(len(m), dtype=torch.bool, device=m.device)
    same = (m[..., 0] == q[..., 0]).all(-1)
    return (m == q).all(-1).all(-1) if same.any() else same


# --- the end ---------------------------------------------------------------------------------------------------------


def spectrum(state: Graded, batch_shape: tuple[int, ...], columns: int) -> ProductSpectrum:
    """The singular values of Q diag(2**e) U. Q is well conditioned only: its own R joins the product first."""
    r = torch.linalg.qr(state.q, mode="r").R
    u = (r * power_ratio(state.exponents, state.exponents)) @ state.u
    u = torch.where(state.untouched[:, None, None], state.u, u)
    log_values, dependence = graded_singular_values(state.exponents, u)
    sizes = log_row_norms(state.exponents, u)
    sizes, order = sizes.sort(dim=-1, descending=True, stable=True)
    state = in_order(state, order)
    variance = state.variance + (state.drift.square().mean(1) if state.drift.shape[1] else 0.0)
    error = final_error(state.angle, variance, state.exponents, dependence, sizes, state.eps)
    error = ERROR_FACTOR * (state.eps * error + EPS * log_values.abs()) + hidden_below(state, sizes, log_values)
    kept = log_values.shape[-1]
    zero = torch.arange(kept, device=u.device) >= kept - state.dead.sum(-1, keepdim=True)
    error = with_overtaking(log_values, error)
    lost = ~(error <= LARGEST_ERROR) & ~zero   # all the smaller values may be smaller still, or larger
    lost = (lost.cummax(-1).values if kept else lost) & ~zero
    log_values = log_values.masked_fill(zero, -torch.inf).masked_fill(lost, torch.nan)
    log_error = error.masked_fill(zero, 0.0).masked_fill(lost, torch.inf)
    missing = min(state.q.shape[-2], columns) - kept   # a bottleneck inside the product
    log_values = torch.nn.functional.pad(log_values, (0, missing), value=-torch.inf)
    log_error = torch.nn.functional.pad(log_error, (0, missing))
    rank = torch.where(state.valid, log_values.isfinite().sum(-1), -1)
    below_floor = torch.where(state.valid, lost.sum(-1), 0)
    invalid = ~state.valid.unsqueeze(-1)
    shape = (*batch_shape, log_values.shape[-1])
    return ProductSpectrum(log_values.masked_fill(invalid, torch.nan).reshape(shape),
                           log_error.masked_fill(invalid, torch.nan).reshape(shape),
                           rank.reshape(batch_shape), below_floor.reshape(batch_shape))


def with_overtaking(log_values: Float[Tensor, "batch k"], error: Float[Tensor, "batch k"]) -> Tensor:
    """The errors, where a value may turn out to be larger than one that stands before it, and take its place."""
    above = log_values + torch.where(error <= LARGEST_ERROR, error, 0.0)   # a value that is not given bounds nothing
    return torch.maximum(error, above.sort(dim=-1, descending=True).values - log_values)


def hidden_below(state: Graded, sizes: Float[Tensor, "batch k"], log_values: Float[Tensor, "batch k"],
                 ) -> Float[Tensor, "batch k"] | Tensor:
    """Relative error of each singular value s from unresolved directions: by Weyl's inequality, their norm over s."""
    if not state.hidden.any():
        return log_values.new_zeros(())
    sizes = sizes.masked_fill(~state.hidden, -torch.inf)
    return (math.log(2.0) + 0.5 * torch.logsumexp(2 * sizes, -1, keepdim=True) - log_values).clamp(max=700.0).exp()
