"""The choice of a route to a spectrum, and of the number of samples at once, by estimates of time and memory."""

import math

from flowstudy.measure.models.chain import Factor
from flowstudy.measure.models.dense_jacobian import Stretch
from flowstudy.measure.models.graph import shape_of

MEMORY_BUDGET = 2**30  # bytes, beside the model's own: a quarter for the Jacobians held at once, the rest for their svd
WIDEST = 2048  # the largest width at which "auto" takes the product route, whose cost grows with the cube of the width
# Multiplications of matrices of the factors' width that a step costs, measured on a CPU at widths 64 to 512: each
# factor's QR and update, the Jacobi sweeps at the end, and LAPACK's singular values.
QR_STEPS, JACOBI_STEPS, SVD_STEPS = 8, 50, 12
DENSE_FIRST = 3.0      # the dense route is tried first if it is this many times cheaper than the product route ...
WORTH_CHOOSING = 5e9   # ... and the product route takes more multiplications than this, about a second


def choose(method: str, chain: list[Factor], whole: Stretch) -> str:
    """"product", "dense", "matrix_free", or "dense first": dense, unless it leaves values that are not resolved."""
    if method != "auto":
        return method
    widest = max(factor.outputs for factor in chain)
    dense_fits = 8 * whole.inputs * whole.outputs <= MEMORY_BUDGET // 4
    if len(chain) > 1 and widest <= WIDEST and product_bytes(chain) <= MEMORY_BUDGET:
        product, dense = product_cost(chain), dense_cost(chain, whole)
        return "dense first" if dense_fits and product > max(DENSE_FIRST * dense, WORTH_CHOOSING) else "product"
    return "dense" if dense_fits else "matrix_free"


def product_bytes(chain: list[Factor]) -> int:
    """For one sample: the largest factor's Jacobian, and the product's running state with what is made on the way."""
    running, largest = chain[0].inputs, 0
    for factor in chain:
        largest = max(largest, 3 * factor.inputs * factor.outputs + 8 * factor.outputs * min(running, factor.outputs))
        running = min(running, factor.outputs)
    return 8 * largest


def cotangents_fit(chain: list[Factor]) -> bool:
    """Whether the gradients at all cuts, of all samples, take so little memory that they may be kept."""
    return 8 * sum(math.prod(shape_of(factor.start)) for factor in chain) <= MEMORY_BUDGET // 4


def samples_at_once(route: str, chain: list[Factor], whole: Stretch) -> int:
    """The number of samples whose computation by this route fits into the memory budget."""
    dense = 4 * 8 * whole.inputs * whole.outputs
    needed = {"product": product_bytes(chain), "dense first": max(dense, product_bytes(chain))}.get(route, dense)
    return max(1, MEMORY_BUDGET // needed)


def product_cost(chain: list[Factor]) -> float:
    """Multiplications, for all samples."""
    running, cost = chain[0].inputs, 0.0
    for factor in chain:
        rows = 0 if factor.rule is not None else factor.outputs * pass_cost(factor)
        running = min(running, factor.outputs)
        cost += rows + factor.samples * QR_STEPS * factor.outputs * factor.inputs * running
    return cost + chain[0].samples * JACOBI_STEPS * running**3


def dense_cost(chain: list[Factor], whole: Stretch) -> float:
    """Multiplications, for all samples."""
    small, large = sorted((whole.inputs, whole.outputs))
    return whole.outputs * sum(map(pass_cost, chain)) + whole.samples * SVD_STEPS * large * small**2


def pass_cost(factor: Factor) -> float:
    """Multiplications of a backward pass of all samples: every weight at every position, and a few for every value."""
    values = math.prod(shape_of(factor.end))
    return 4.0 * values + sum(p.numel() / p.shape[0] * values for p in factor.weights if p.ndim > 1)
