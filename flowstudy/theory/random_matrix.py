"""Spectra of products of random matrices."""

import numpy as np
from scipy.special import digamma


def lyapunov_exponents(width: int, weight_var: float = 1.0) -> np.ndarray:
    """Lyapunov exponents of a product of square Gaussian matrices: growth of ln singular value per layer, exact.

    lambda_i = (ln(2 weight_var / width) + psi((width - i + 1) / 2)) / 2, i = 1..width, psi the digamma function.

    Args:
        width: n, an integer of at least 1.
        weight_var: variance of an entry times n: entries are N(0, weight_var / n).
    Returns:
        (width,) float64 [nats per layer], descending.
    Source: Newman 1986, Communications in Mathematical Physics 103, 121.

    >>> lyapunov_exponents(2).round(8).tolist()
    [-0.28860783, -0.98175501]
    """
    if width < 1:
        raise ValueError(f"lyapunov_exponents: `width` must be an integer of at least 1, got {width!r}.")
    if not weight_var > 0:
        raise ValueError(f"lyapunov_exponents: `weight_var` must be positive, got {weight_var!r}.")
    i = np.arange(1, width + 1)
    return 0.5 * (np.log(2 * weight_var / width) + digamma((width - i + 1) / 2))
