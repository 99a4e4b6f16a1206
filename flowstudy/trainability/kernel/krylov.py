"""The kernel by its products alone: Lanczos' quadrature of the residual's spectral measure.

Of k steps, Gauss' rule underestimates what remains and Gauss-Radau's with a node at 0 overestimates it, since
exp(-2 t x) is completely monotone in x.

Source: Golub & Meurant 2010, chapter 6.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .decay import Decay
from .linearised import Linearised, split_like

USED_UP = 1e-12  # of the largest entry: what is left of a vector outside the space is rounding


def lanczos(net: Linearised, start: Tensor, scale: Tensor | None, steps: int,
            enough: Callable[[Tensor, float], bool]) -> tuple[Tensor, Tensor, float]:
    """An orthonormal basis (row, step) that begins with the start, and K in it, tridiagonal; fully reorthogonalised.

    It ends before `steps` where the results so far are `enough`.  The third result is the norm of K's part that leads
    out of the space; it is 0 where the space is exhausted, so that all is known to rounding.
    """
    v = start.flatten().double()
    size = torch.linalg.vector_norm(v)
    basis: list[Tensor] = []
    diagonal, beside = [], []
    if size == 0 or not size.isfinite():
        return v.new_zeros(len(v), 0), v.new_zeros(0, 0), 0.0
    v = v / size
    for _ in range(min(steps, len(v))):
        basis.append(v)
        w = kernel_times(net, v, scale)
        diagonal.append(v @ w)
        for _ in range(2):   # once more: what the first time leaves is rounding
            for q in basis:
                w = w - (q @ w) * q
        norm = torch.linalg.vector_norm(w)
        if norm <= USED_UP * max(abs(d) for d in diagonal) or len(basis) == len(v):
            norm = torch.zeros_like(norm)
            break
        if enough(tridiagonal_matrix(diagonal, beside), float(norm)):
            break
        beside.append(norm)
        v = w / norm
    return torch.stack(basis, 1), tridiagonal_matrix(diagonal, beside), float(norm)


def tridiagonal_matrix(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    matrix = torch.diag(torch.stack(diagonal))
    for i, b in enumerate(beside[:len(diagonal) - 1]):
        matrix[i, i + 1] = matrix[i + 1, i] = b
    return matrix


def kernel_times(net: Linearised, v: Tensor, scale: Tensor | None) -> Tensor:
    pulled = net.pull(v.view_as(net.outputs).to(net.outputs))
    if scale is not None:
        pulled = [p * s for p, s in zip(pulled, split_like(scale, pulled), strict=True)]
    return net.push(pulled).flatten().double()


def decay_of_krylov(tridiagonal: Tensor, outside: float) -> tuple[Decay, np.ndarray]:
    """Gauss' rule, from below, and Gauss-Radau's with a node at 0, from above: what remains is completely monotone.

    The largest eigenvalue found is below that of K; one of K's lies within `outside` times the last entry of its
    vector, and this is taken for the largest, which it is but after very few steps.  Where the space is used up Gauss'
    rule is exact.
    """
    if not len(tridiagonal):
        return Decay(np.zeros(1), np.ones(1)), np.zeros(0)
    if not tridiagonal.isfinite().all():
        return Decay(np.zeros(1), np.ones(1)), np.full(1, np.nan)
    values, vectors = torch.linalg.eigh(tridiagonal)
    values = values.clamp(min=0.0)
    top = float(values[-1])
    shares = vectors[0].square()
    if top == 0:
        return Decay(np.zeros(1), np.ones(1)), values.cpu().numpy()
    upper = with_a_node_at_zero(tridiagonal, top + outside * abs(float(vectors[-1, -1]))) if outside else None
    return (Decay(values.cpu().numpy() / top, shares.cpu().numpy(), exact=not outside, upper=upper),
            values.flip(0).cpu().numpy())


def with_a_node_at_zero(tridiagonal: Tensor, top: float) -> Decay:
    """Gauss-Radau's rule: the last diagonal entry is such that 0 is an eigenvalue."""
    bounded = tridiagonal.clone()
    bounded[-1, -1] = 0.0
    if len(tridiagonal) > 1:
        inner, b = tridiagonal[:-1, :-1], tridiagonal[-2, -1]
        last = torch.zeros(len(inner), dtype=tridiagonal.dtype, device=tridiagonal.device)
        last[-1] = b**2
        bounded[-1, -1] = torch.linalg.solve(inner, last)[-1]
    nodes, vectors = torch.linalg.eigh(bounded)
    return Decay(nodes.clamp(min=0.0).cpu().numpy() / top, vectors[0].square().cpu().numpy(), exact=False)
