"""The factors of a product, matrices or functions that apply one: checked, and applied to a batch."""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowstudy.refusal import RefusalError, RefusalTypeError

from .batched_qr import LARGEST_SQUARE

MatrixLike = Tensor | Callable[[Tensor], Tensor]


def first_factor(call: str, factors: Iterable[MatrixLike]) -> tuple[MatrixLike, Iterator[MatrixLike]]:
    """The first factor, and the others."""
    if isinstance(factors, Tensor) or not isinstance(factors, Iterable):
        raise RefusalTypeError(f"{call}: `factors` must be an iterable of factors, got {type(factors).__name__}. "
                               "Pass `[factor]` for one, `stack.unbind(0)` for a stack.")
    rest = iter(factors)
    first = next(rest, None)
    if first is None:
        raise RefusalError(f"{call}: `factors` must hold at least one factor, got none.")
    return check_factor(call, first), rest


def check_factor(call: str, factor: MatrixLike) -> MatrixLike:
    if isinstance(factor, Tensor):
        if not factor.is_floating_point():
            raise RefusalTypeError(f"{call}: a factor must be a real floating tensor, got {factor.dtype}.")
        if factor.ndim < 2 or 0 in factor.shape:
            raise RefusalError(f"{call}: a factor must be of shape (*batch, rows, columns), none of them 0, "
                               f"got {tuple(factor.shape)}.")
    elif not callable(factor):
        raise RefusalTypeError(f"{call}: a factor must be a tensor or a function of one, got {type(factor).__name__}.")
    return factor


def apply_all(call: str, q: Float[Tensor, "batch inputs directions"], chunk: list[MatrixLike],
              ) -> tuple[Float[Tensor, "batch rows directions"], Float[Tensor, "batch rows"]]:
    """A_j ... A_i Q, and the norms of the last factor's rows times the root mean squared row norms of the others.

    These norms are infinite where numbers on the way may have left the range of float64.
    """
    m, sizes = apply(call, check_factor(call, chunk[0]), q)
    before = []
    for factor in chunk[1:]:
        before.append(torch.linalg.vector_norm(sizes, dim=-1, keepdim=True) / sizes.shape[-1]**0.5)
        m, sizes = apply(call, check_factor(call, factor), m)
    if before:
        so_far = torch.stack(torch.broadcast_tensors(*before)).cumprod(0)
        ordinary = ((so_far < LARGEST_SQUARE) & (so_far > 1 / LARGEST_SQUARE)).all(0)
        sizes = torch.where(ordinary, sizes * so_far[-1], torch.inf)
    return m, sizes.expand(len(m), -1)


def apply(call: str, factor: MatrixLike, x: Float[Tensor, "batch inputs k"],
          ) -> tuple[Float[Tensor, "batch outputs k"], Float[Tensor, "some outputs"]]:
    """A x, and the norms of A's rows or, of a function, of the rows of A x."""
    members, inputs, _ = x.shape
    if isinstance(factor, Tensor):
        if factor.shape[-1] != inputs:
            raise RefusalError(f"{call}: a factor of shape {tuple(factor.shape)} must have {inputs} columns to follow "
                               "what comes before it. `factors` begin with the one applied first.")
        a = flatten_batch(call, factor, members)
        return a @ x, torch.linalg.vector_norm(a, dim=-1)
    y = factor(x)
    if y.ndim != 3 or y.shape[0] != members or y.shape[2] != x.shape[2]:
        raise RefusalError(f"{call}: a factor's function must return ({members}, rows, {x.shape[2]}) for an argument "
                           f"of shape {tuple(x.shape)}, got {tuple(y.shape)}.")
    y = y.detach().double()
    return y, torch.linalg.vector_norm(y, dim=-1)


def matrix_of(call: str, factor: MatrixLike, q: Float[Tensor, "batch inputs directions"],
              members: Int[Tensor, " part"]) -> Float[Tensor, "part rows columns"]:
    """The factor written out, for some members of the batch that it is applied to."""
    batch, inputs = q.shape[:2]
    if not isinstance(factor, Tensor):
        eye = torch.eye(inputs, dtype=q.dtype, device=q.device)
        return apply(call, factor, eye.repeat(batch, 1, 1))[0][members]
    a = flatten_batch(call, factor, batch)
    return a.expand(len(members), -1, -1) if len(a) == 1 else a[members]


def flatten_batch(call: str, factor: Tensor, members: int) -> Float[Tensor, "batch rows columns"]:
    """(*batch, rows, columns) in float64 with one batch axis, of length `members` or 1."""
    flat = factor.detach().double().flatten(0, -3) if factor.ndim > 2 else factor.detach().double().unsqueeze(0)
    if len(flat) not in (1, members):
        raise RefusalError(f"{call}: a factor of shape {tuple(factor.shape)} must fit a batch of {members}. "
                           "Give every factor the same batch axes, or none; pass `batch_shape` if the first has none.")
    return flat
