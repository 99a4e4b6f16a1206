"""Moments of an activation's slope over Gaussian preactivations, mu_k = E phi'(sqrt(q) z)^(2k), z ~ N(0, 1)."""

from collections.abc import Callable

import numpy as np
from scipy.special import erf, expit, ndtr

from .checks import Result

NODES = 801


SLOPES: dict[str, Callable[[Result], Result]] = {  # those without a closed form below
    "tanh": lambda h: 1 / np.cosh(np.clip(h, -350, 350)) ** 2,
    "sigmoid": lambda h: expit(h) * expit(-h),
    "gelu": lambda h: ndtr(h) + h * np.exp(-(h**2) / 2) / np.sqrt(2 * np.pi),
}
SLOPE_MOMENTS: dict[str, Callable[[int, Result], Result]] = {
    "linear": lambda k, q: np.ones_like(q),
    "relu": lambda k, q: np.full_like(q, 0.5),
    "hard_tanh": lambda k, q: erf(1 / np.sqrt(2 * q)),
    "erf": lambda k, q: (4 / np.pi) ** k / np.sqrt(1 + 4 * k * q),
} | {name: lambda k, q, slope=slope: gaussian_mean(lambda h: slope(h) ** (2 * k), q) for name, slope in SLOPES.items()}


def gaussian_mean(function: Callable[[Result], Result], q: Result) -> Result:
    """E f(h), h ~ N(0, q), for f analytic near the real axis.

    The trapezoidal rule in w, h = s sinh(w): its error falls exponentially in the number of nodes, whatever q is.
    Gauss-Hermite nodes would be too far apart for tanh, whose poles lie at distance pi / 2.
    """
    scale = np.minimum(1.0, np.sqrt(q))[..., None]
    widest = np.arcsinh(10 * np.sqrt(q)[..., None] / scale)  # 10 standard deviations
    w = widest * np.linspace(-1, 1, NODES)
    h = scale * np.sinh(w)
    weight = np.cosh(w) * np.exp(-(h**2) / (2 * q[..., None]))
    return (weight * function(h)).sum(-1) / weight.sum(-1)
