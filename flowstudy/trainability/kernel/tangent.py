"""The empirical tangent kernel K = J D J^T of a batch, seen by the task's residual.

J is d outputs / d parameters, D what the optimiser divides gradients by: 1 for gradient descent, and for Adam
1 / sqrt(g^2 + Var_i(g_i) / B), the size of the gradient's entries as batches of B samples show them.  Two routes:

"rows": all rows of J, one for each sample and output; K and its eigenvalues are exact.
"krylov": products K v alone, by one backward and one forward pass of the batch each, which bound what remains from both
    sides.  For many outputs, many parameters, and passes of the whole batch where layers mix its samples.

Source: Jacot, Gabriel, Hongler 2018.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .adam import preconditioner, preconditioner_of_rows
from .decay import HORIZON, Decay
from .krylov import decay_of_krylov, lanczos
from .linearised import Linearised, centred, jacobian_rows, split_like

MEMORY_BUDGET = 2**30  # the most bytes for the rows of J
MOST_ROWS = 1024       # the most rows of K by the route "rows"
KRYLOV_STEPS = 32      # the most products by the route "krylov"
LEAST_STEPS = 5        # the fewest products by that route
PATIENCE = 20.0        # seconds after which no more products are made
KNOWN = 0.01           # products stop when the error of the remaining share is below this
POWER_STEPS = 1000     # the most steps of the power iteration for the sharpness
POWER_SETTLED = 1e-9   # the power iteration stops at a relative change per step below this


@dataclass(frozen=True)
class Kernel:
    """The results from the tangent kernel that the verdict needs.

    Attributes:
        decay: of the centred residual, in the optimiser's metric; `adams`, in Adam's, where it is known.
        shares: by parameter, its part of r^T K r, r the centred residual: of what the first step learns.
        eigenvalues: of K / samples, descending; by the route "krylov" some of them.
        sharpness: largest eigenvalue of H K, H the loss's curvature in the outputs: gradient descent raises the loss in
            its first steps at rates above 2 / sharpness.
        route: "rows" or "krylov".
    """

    decay: Decay
    adams: Decay | None
    shares: dict[str, float]
    eigenvalues: np.ndarray
    sharpness: float
    route: str

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; inf where the smallest is 0, nan where it is not known."""
        if self.route != "rows" or not len(self.eigenvalues):
            return float("nan")
        smallest = self.eigenvalues[-1]
        return float(self.eigenvalues[0] / smallest) if smallest > 0 else float("inf")


def tangent_kernel(net: Linearised, *, adam: bool, batch_size: int) -> Kernel:
    """The kernel by the route "rows" if they are few enough and fit into memory, else by the route "krylov"."""
    parameters = sum(w.numel() for w in net.weights)
    outputs = net.outputs.numel()
    few = outputs <= MOST_ROWS and net.outputs.element_size() * parameters * outputs <= MEMORY_BUDGET
    return kernel_by_rows(net, adam, batch_size) if few else kernel_by_products(net, adam, batch_size, KRYLOV_STEPS)


def kernel_by_rows(net: Linearised, adam: bool, batch_size: int) -> Kernel:
    _, residual = net.loss_and_residual()
    target = centred(residual)
    blocks = jacobian_rows(net, net.samples_are_apart())
    rows = torch.cat([torch.cat([part.flatten(1) for part in block], 1) for block in blocks])
    scale = preconditioner_of_rows(rows, residual, batch_size)
    adams_kernel = ((rows * scale) @ rows.mT).double()
    kernel = adams_kernel if adam else (rows @ rows.mT).double()
    decay, eigenvalues = decay_of(kernel, target)
    adams = decay if adam else decay_of(adams_kernel, target)[0]
    return Kernel(decay, adams, shares_of(net, target, scale if adam else None), eigenvalues / net.samples,
                  largest_of_product(net, lambda v: kernel @ v), "rows")


def kernel_by_products(net: Linearised, adam: bool, batch_size: int, steps: int) -> Kernel:
    _, residual = net.loss_and_residual()
    target = centred(residual)
    scale = preconditioner(net, residual, batch_size) if adam else None
    basis, tridiagonal, outside = lanczos(net, target, scale, steps, Enough())
    decay, eigenvalues = decay_of_krylov(tridiagonal, outside)
    sharpness = largest_of_product(net, lambda v: basis @ (tridiagonal @ (basis.mT @ v)))
    return Kernel(decay, decay if adam else None, shares_of(net, target, scale), eigenvalues / net.samples, sharpness,
                  "krylov")


class Enough:
    """The test whether there are enough products: the remaining share is known well, or they have taken too long."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def __call__(self, tridiagonal: Tensor, outside: float) -> bool:
        if len(tridiagonal) < LEAST_STEPS:
            return False
        if time.perf_counter() - self.started > PATIENCE:
            return True
        return decay_of_krylov(tridiagonal, outside)[0].error(HORIZON) < KNOWN


def decay_of(kernel: Float[Tensor, "row row"], residual: Tensor) -> tuple[Decay, np.ndarray]:
    """The decay of the residual, and the eigenvalues, descending; nothing decays if the numbers are not finite."""
    if not kernel.isfinite().all() or not residual.isfinite().all():
        return Decay(np.zeros(1), np.ones(1)), np.full(1, np.nan)
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0.0)
    parts = (vectors.mT @ residual.flatten().double()).square()
    top = values[-1]
    ratios = values / top if top > 0 else torch.zeros_like(values)
    shares = parts / parts.sum() if parts.sum() > 0 else torch.full_like(parts, 1 / len(parts))
    return Decay(ratios.cpu().numpy(), shares.cpu().numpy()), values.flip(0).cpu().numpy()


def largest_of_product(net: Linearised, kernel: Callable[[Tensor], Tensor]) -> float:
    """Largest eigenvalue of H K, by power iteration, from below; nan where these are not finite.

    Its value is Rayleigh's quotient of the symmetric K^1/2 H K^1/2, whose error is the square of the vector's.
    """
    times = net.curvature()
    v = torch.randn(net.outputs.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v, value = v.to(net.outputs.device), 0.0
    for _ in range(POWER_STEPS):
        moved = kernel(v)
        w = times(moved.to(net.outputs).view_as(net.outputs)).flatten().double()
        size, before = torch.linalg.vector_norm(w), value
        if size == 0 or not size.isfinite():
            return 0.0 if size == 0 else float("nan")
        value, v = float(moved @ w / (v @ moved)), w / size
        if abs(value - before) <= POWER_SETTLED * abs(value):
            break
    return value


def shares_of(net: Linearised, target: Tensor, scale: Tensor | None) -> dict[str, float]:
    """Each parameter's share of r^T K r, r being `target`, by the parameter's name."""
    pulled = net.pull(target.to(net.outputs))
    weighted = pulled if scale is None else [p * s for p, s in zip(pulled, split_like(scale, pulled), strict=True)]
    parts = {name: float((p * q).sum()) for name, p, q in zip(net.parameters, pulled, weighted, strict=True)}
    total = sum(parts.values())
    return {name: part / total if total > 0 else 0.0 for name, part in parts.items()}
