"""All singular values of a matrix product in extended precision: slow and obvious, sharing no code with flowstudy."""

import mpmath
import torch
from torch import Tensor


def log_singular_values(factors: list[Tensor]) -> Tensor:
    """Natural logs, descending, of all singular values of factors[-1] @ ... @ factors[0]; -inf where 0.

    The digits are 50 more than the spread, bounded by the sum of the factors' own log condition numbers or, with rank
    deficient factors, by a generous multiple of the depth.
    """
    spread = sum(digits_lost(a) for a in factors)
    with mpmath.workdps(50 + int(spread)):
        product = mpmath.matrix(factors[0].tolist())
        for a in factors[1:]:
            product = mpmath.matrix(a.tolist()) * product
        if product.rows < product.cols:
            product = product.T
        values = mpmath.svd_r(product, compute_uv=False)
        floor = values[0] * mpmath.mpf(10) ** (-int(spread) - 25)
        logs = [float(mpmath.log(v)) if v > floor else -float("inf") for v in values]
    return torch.tensor(sorted(logs, reverse=True), dtype=torch.float64)


def digits_lost(a: Tensor) -> float:
    """log10 of largest over smallest nonzero singular value of one factor, rows of wild sizes taken apart first."""
    rows = a.abs().amax(-1)
    rows = rows[rows > 0]
    s = torch.linalg.svdvals(a / a.abs().amax(-1, keepdim=True).clamp(min=1e-300))
    s = s[s > 1e-13 * s[0]]
    return float((s[0] / s[-1]).log10() + (rows.max() / rows.min()).log10()) if len(s) else 0.0
