"""Growth of singular values per layer, and of their product: Gaussian layers, exact at any width."""

import numpy as np
from scipy.special import digamma, polygamma

from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Moments, Values, check_integer, check_number

Whole = int | np.integer


def lyapunov_exponents(width: Whole, weight_var: Values = 1.0, *, live: Whole | None = None) -> np.ndarray:
    """Lyapunov exponents of a product of square Gaussian matrices: growth of ln singular value per layer, exact.

    lambda_i = (ln(2 weight_var / width) + psi((live - i + 1) / 2)) / 2, i = 1..live, psi the digamma function.

    Args:
        width: n, an integer of at least 1.
        weight_var: variance of an entry times n: entries are N(0, weight_var / n). Arrays lead the result's axes.
        live: rows that a mask leaves in each layer, the same number in every layer, 1..width; None is all. A ReLU net's
            number varies: all its exponents are -inf in the limit of depth (`expected_rank` is for finite depth).
    Returns:
        (..., width) float64 [nats per layer], descending; -inf beyond the rank `live`.
    Source: Newman 1986, Communications in Mathematical Physics 103, 121. With masks, n - i + 1 becomes live - i + 1:
        orthonormal directions have independent Gaussian images in the live rows alone.

    >>> lyapunov_exponents(2).round(8).tolist()
    [-0.28860783, -0.98175501]
    """
    call = "lyapunov_exponents"
    n, k = check_rows(call, width, live)
    weight_var = check_number(call, "weight_var", weight_var)
    psi = np.full(n, -np.inf)
    psi[:k] = digamma((k - np.arange(k)) / 2)
    return 0.5 * (np.log(2 * weight_var[..., None] / n) + psi)


def lyapunov_variance(width: Whole, *, live: Whole | None = None) -> np.ndarray:
    """Variance per layer of ln R_ii along a product's QR decomposition, exact: psi'((live - i + 1) / 2) / 4.

    Layers and i are independent: over `depth` layers, the i-th exponent's estimate has this variance over depth.

    Args: as `lyapunov_exponents`.
    Returns:
        (width,) float64 [nats^2 per layer], ascending; nan beyond the rank `live`.
    Source: Newman 1986, whose squared lengths are independent chi-squared variables: a quarter of the variance of the
    logarithm of one.  Akemann, Burda & Kieburg 2014 (arXiv:1406.0803) have the same for complex matrices.
    """
    n, k = check_rows("lyapunov_variance", width, live)
    variance = np.full(n, np.nan)
    variance[:k] = polygamma(1, (k - np.arange(k)) / 2) / 4
    return variance


def sum_log_singular_values(width: Whole, depth: Values, weight_var: Values = 1.0) -> Moments:
    """Mean and variance of the sum of all log singular values of `depth` square Gaussian layers: ln |det J|, exact.

    |det| of a Gaussian matrix is a product of independent chi variables with 1..width degrees of freedom, and
    determinants multiply: mean depth sum_i lambda_i, variance depth / 4 sum_i psi'(i / 2). Close to normal.

    Args:
        width: units a layer, an integer of at least 1.
        depth: number of matrices, an integer of at least 1.
        weight_var: variance of an entry times width.

    Returns:
        (mean, variance) [nats, nats^2], float64.

    >>> [round(float(value), 3) for value in sum_log_singular_values(16, depth=20)]
    [-175.27, 55.526]
    """
    call = "sum_log_singular_values"
    n, depth = check_scalar_width(call, width), check_integer(call, "depth", depth)
    weight_var = check_number(call, "weight_var", weight_var)
    i = np.arange(1, n + 1)
    mean = depth * (n * np.log(2 * weight_var / n) + digamma(i / 2).sum()) / 2
    return Moments(mean, depth * polygamma(1, i / 2).sum() / 4 + np.zeros_like(mean))


def check_rows(call: str, width: Whole, live: Whole | None) -> tuple[int, int]:
    n = check_scalar_width(call, width)
    k = n if live is None else check_scalar_width(call, live, "live")
    if k > n:
        raise RefusalError(f"{call}: `live` must be at most the width {n}, got {live!r}.")
    return n, k


def check_scalar_width(call: str, value: Whole, name: str = "width") -> int:
    """One width: the result has an axis of this length, or a sum over it."""
    if np.ndim(value):
        raise RefusalError(f"{call}: `{name}` must be a single integer, got {value!r}.")
    return int(check_integer(call, name, value))
