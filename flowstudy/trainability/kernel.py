"""The empirical tangent kernel K = J D J^T of a batch, seen by the task's residual.

J is d outputs / d parameters, D what the optimiser divides gradients by: 1 for gradient descent, and for Adam
1 / sqrt(g^2 + Var_i(g_i) / B), the size of the gradient's entries as batches of B samples show them.  Two routes:

"rows": all rows of J, one for each sample and output; K and its eigenvalues are exact.
"krylov": products K v alone, by one backward and one forward pass of the batch each; Lanczos' quadrature from the
    residual then bounds what remains from both sides.  For many outputs, many parameters, and layers that mix samples.

Sources: Jacot, Gabriel, Hongler 2018 (the kernel); Golub & Meurant 2010, chapter 6 (Gauss and Gauss-Radau bounds).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .decay import Decay
from .linearised import Linearised, Parts, centred, jacobian_rows

MEMORY_BUDGET = 2**30  # bytes of the rows of J
MOST_ROWS = 1024       # of K that are written out
KRYLOV_STEPS = 32
FLOOR = 1e-8           # of the largest entry: Adam's own, beside which gradients are noise
MOST_GAIN = 1e2        # times the median: no parameter is preconditioned more than that
POWER_STEPS = 60


@dataclass(frozen=True)
class Kernel:
    """What the reading needs of the kernel.

    Attributes:
        decay: of the centred residual.
        by_layer: by parameter, its share of ||J^T r||^2 in the metric of the optimiser, r the centred residual: of what
            the first step learns.
        eigenvalues: of K / samples, descending; of the krylov route some of them.
        sharpness: largest eigenvalue of H K, H the loss's curvature in the outputs: gradient descent raises the loss in
            its first steps at rates above 2 / sharpness.
        gradient: by parameter, whether it has none ("none"), exactly zero ("zero") or some ("value").
        route: "rows" or "krylov".
    """

    decay: Decay
    by_parameter: dict[str, float]
    eigenvalues: np.ndarray
    sharpness: float
    gradient: dict[str, str]
    route: str

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; inf where the smallest is 0, nan where it is not known."""
        if self.route != "rows" or not len(self.eigenvalues):
            return float("nan")
        smallest = self.eigenvalues[-1]
        return float(self.eigenvalues[0] / smallest) if smallest > 0 else float("inf")


def tangent_kernel(net: Linearised, *, adam: bool, batch_size: int, krylov_steps: int = KRYLOV_STEPS) -> Kernel:
    _, residual = net.loss_and_residual()
    target = centred(residual)
    apart = net.samples_are_apart()
    parameters = sum(w.numel() for w in net.weights)
    few = net.outputs.numel() <= MOST_ROWS and 8 * parameters * net.outputs.numel() <= MEMORY_BUDGET
    if few:
        rows = torch.cat([torch.cat([part.flatten(1) for part in block], 1) for block in jacobian_rows(net, apart)])
        scale = preconditioner_of_rows(rows, residual, batch_size) if adam else None
        weighted = rows if scale is None else rows * scale
        kernel = weighted @ rows.mT
        decay, eigenvalues = decay_of(kernel, target)
        sharpness = largest_of_product(net, lambda v: kernel @ v)
    else:
        scale = preconditioner(net, residual, batch_size) if adam else None
        basis, tridiagonal = lanczos(net, target, scale, krylov_steps)
        decay, eigenvalues = decay_of_krylov(tridiagonal)
        sharpness = largest_of_product(net, lambda v: basis @ (tridiagonal @ (basis.mT @ v)))
    return Kernel(decay, shares_of(net, target, scale), eigenvalues / net.samples, sharpness, gradients_of(net, residual),
                  "rows" if few else "krylov")


def decay_of(kernel: Float[Tensor, "row row"], residual: Tensor) -> tuple[Decay, np.ndarray]:
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0.0)
    parts = (vectors.mT @ residual.flatten().to(kernel)).square()
    top = values[-1]
    ratios = values / top if top > 0 else torch.zeros_like(values)
    shares = parts / parts.sum() if parts.sum() > 0 else torch.full_like(parts, 1 / len(parts))
    return Decay(ratios.cpu().numpy(), shares.cpu().numpy()), values.flip(0).cpu().numpy()


# --- Adam's metric ---------------------------------------------------------------------------------------------------


def adams_scale(mean: Tensor, variance: Tensor, batch_size: int) -> Tensor:
    """1 / sqrt(g^2 + Var_i(g_i) / B), bounded where gradients are as good as 0."""
    size = (mean.square() + variance / batch_size).sqrt()
    scale = 1 / (size + FLOOR * size.max() + 1e-300)
    return scale.clamp(max=float(scale.median()) * MOST_GAIN)


def preconditioner_of_rows(rows: Float[Tensor, "row parameter"], residual: Tensor, batch_size: int) -> Tensor:
    samples = len(residual)
    r = samples * residual.reshape(samples, -1).to(rows)   # of a sample's own loss
    shares = torch.bmm(r.unsqueeze(1), rows.view(samples, r.shape[1], -1)).squeeze(1)
    return adams_scale(shares.mean(0), shares.var(0), batch_size)


def preconditioner(net: Linearised, residual: Tensor, batch_size: int) -> Tensor:
    """From the gradient that each sample's part of the residual gives, one pass of the batch each."""
    total, squares = 0.0, 0.0
    for i in range(net.samples):
        own = torch.zeros_like(residual)
        own[i] = net.samples * residual[i]
        share = flat(net.pull(own))
        total, squares = total + share, squares + share.square()
    mean = total / net.samples
    variance = (squares / net.samples - mean.square()).clamp(min=0.0) * net.samples / max(1, net.samples - 1)
    return adams_scale(mean, variance, batch_size)


# --- krylov ----------------------------------------------------------------------------------------------------------


def lanczos(net: Linearised, start: Tensor, scale: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (row, step) that begins with the start, and K in it, tridiagonal; fully reorthogonalised."""
    v = start.flatten().double()
    size = torch.linalg.vector_norm(v)
    basis: list[Tensor] = []
    diagonal, beside = [], []
    if size == 0 or not size.isfinite():
        return v.new_zeros(len(v), 0), v.new_zeros(0, 0)
    v = v / size
    for _ in range(min(steps, len(v))):
        basis.append(v)
        w = kernel_times(net, v, scale)
        diagonal.append(v @ w)
        for _ in range(2):   # once more: what the first time leaves is rounding
            for q in basis:
                w = w - (q @ w) * q
        norm = torch.linalg.vector_norm(w)
        if norm <= 1e-12 * max(abs(d) for d in diagonal):   # the space is used up: the rule is exact
            break
        beside.append(norm)
        v = w / norm
    beside = beside[:len(diagonal) - 1]
    tridiagonal = torch.diag(torch.stack(diagonal))
    for i, b in enumerate(beside):
        tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = b
    return torch.stack(basis, 1), tridiagonal


def kernel_times(net: Linearised, v: Tensor, scale: Tensor | None) -> Tensor:
    pulled = net.pull(v.view_as(net.outputs).to(net.outputs))
    if scale is not None:
        pulled = [p * s for p, s in zip(pulled, split_like(scale, pulled), strict=True)]
    return net.push(pulled).flatten().double()


def decay_of_krylov(tridiagonal: Tensor) -> tuple[Decay, np.ndarray]:
    """Gauss' rule, from below, and Gauss-Radau's with a node at 0, from above: what remains is completely monotone."""
    if not len(tridiagonal):
        return Decay(np.zeros(1), np.ones(1)), np.zeros(0)
    values, vectors = torch.linalg.eigh(tridiagonal)
    values = values.clamp(min=0.0)
    top = float(values[-1])
    shares = vectors[0].square()
    if top == 0:
        return Decay(np.zeros(1), np.ones(1)), values.numpy()
    bounded = tridiagonal.clone()
    if len(tridiagonal) > 1:   # the last diagonal entry such that 0 is an eigenvalue
        inner, b = tridiagonal[:-1, :-1], tridiagonal[-2, -1]
        last = torch.zeros(len(inner), dtype=tridiagonal.dtype)
        last[-1] = b**2
        bounded[-1, -1] = torch.linalg.solve(inner, last)[-1]
    radau, radau_vectors = torch.linalg.eigh(bounded)
    upper = Decay(radau.clamp(min=0.0).numpy() / top, radau_vectors[0].square().numpy(), exact=False)
    return (Decay(values.numpy() / top, shares.numpy(), exact=False, upper=upper), values.flip(0).numpy())


# --- shared ----------------------------------------------------------------------------------------------------------


def largest_of_product(net: Linearised, kernel: Callable[[Tensor], Tensor]) -> float:
    """Largest eigenvalue of H K, by power iteration in the inner product of K; nan where H is not positive."""
    times = net.curvature()
    v = torch.randn(net.outputs.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = 0.0
    for _ in range(POWER_STEPS):
        w = times(kernel(v.to(torch.float64)).to(net.outputs).view_as(net.outputs)).flatten().double()
        size = torch.linalg.vector_norm(w)
        if size == 0 or not size.isfinite():
            return float("nan") if not size.isfinite() else 0.0
        value, v = float(v @ w / (v @ v)), w / size
    return value


def shares_of(net: Linearised, target: Tensor, scale: Tensor | None) -> dict[str, float]:
    """By parameter, its part of r^T K r."""
    pulled = net.pull(target.to(net.outputs))
    weighted = pulled if scale is None else [p * s for p, s in zip(pulled, split_like(scale, pulled), strict=True)]
    parts = {name: float((p * q).sum()) for name, p, q in zip(net.parameters, pulled, weighted, strict=True)}
    total = sum(parts.values())
    return {name: part / total if total > 0 else 0.0 for name, part in parts.items()}


def gradients_of(net: Linearised, residual: Tensor) -> dict[str, str]:
    found = torch.autograd.grad(net.outputs, net.weights, residual.to(net.outputs), retain_graph=True,
                                allow_unused=True)
    return {name: "none" if g is None else "value" if g.any() else "zero"
            for name, g in zip(net.parameters, found, strict=True)}


def flat(parts: Parts) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def split_like(vector: Tensor, parts: Parts) -> Parts:
    return [piece.view_as(part) for piece, part in
            zip(vector.split([part.numel() for part in parts]), parts, strict=True)]
