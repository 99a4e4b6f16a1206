"""Squared singular values of a product of `depth` square Gaussian matrices, as the width goes to infinity.

The matrices' entries are N(0, 1 / width), so the mean squared singular value is 1 at every depth.

Source: Penson & Zyczkowski 2011, Physical Review E 83, 061118 (moments, edge); Haagerup & Moeller 2013, Forrester & Liu
2015 (the density in terms of an angle).
"""

import numpy as np
from scipy.special import binom

from flowstudy.theory.checks import Result, Values, check_integer, check_number

from .roots import rising_root

# ln tan of half the angle, at which the smallest float64 and the edge to the last bit are reached.
NEXT_TO_ZERO, NEXT_TO_EDGE = -800.0, 40.0


def fuss_catalan_moment(k: Values, depth: Values) -> Result:
    """E (1/n) tr (J J^T)^k = binom((depth + 1) k, k) / (depth k + 1), the Fuss-Catalan numbers.

    Args:
        k: order, an integer of at least 0.
        depth: number of matrices, an integer of at least 1.
    Returns:
        float64; inf beyond its range.

    >>> [float(fuss_catalan_moment(k, depth=5)) for k in (1, 2, 3)]
    [1.0, 6.0, 51.0]
    """
    k, depth = check_integer("fuss_catalan_moment", "k", k, 0), check_integer("fuss_catalan_moment", "depth", depth)
    return binom((depth + 1) * k, k) / (depth * k + 1)


def fuss_catalan_edge(depth: Values) -> Result:
    """Largest squared singular value, (depth + 1)^(depth + 1) / depth^depth, about e (depth + 1/2).

    Returns:
        float64, in the shape of `depth`.

    >>> float(fuss_catalan_edge(2))
    6.75
    """
    depth = check_integer("fuss_catalan_edge", "depth", depth)
    return (depth + 1) * np.exp(depth * np.log1p(1 / depth))


def fuss_catalan_density(x: Values, depth: Values) -> Result:
    """Density of the squared singular values at `x`, for any depth; depth 1 is the law of Marchenko and Pastur.

    x = sin^(L+1)((L+1) p) / (sin p sin^L(L p)) and density = sin^2 p sin^(L-1)(L p) / (pi sin^L((L+1) p)) with
    L = depth and 0 < p < pi / (L + 1); the angle is found by bisection.

    Args:
        x: squared singular value; the density is 0 outside (0, edge), and inf at 0.
        depth: number of matrices, an integer of at least 1.
    Returns:
        Per unit of x, float64, in the arguments' common shape; its integral is 1.
    """
    x = check_number("fuss_catalan_density", "x", x, "a number")
    depth = check_integer("fuss_catalan_density", "depth", depth)
    x, depth = np.broadcast_arrays(x, depth)
    inside = (x > 0) & (x < fuss_catalan_edge(depth))
    log_x = np.log(np.where(inside, x, 1.0))

    def log_squared_value(u: Result) -> Result:
        outer, one, many = log_sines(u, depth)
        return (depth + 1) * outer - one - depth * many

    u = rising_root(lambda u: log_squared_value(u) - log_x, NEXT_TO_ZERO, NEXT_TO_EDGE, x.shape)
    outer, one, many = log_sines(u, depth)
    with np.errstate(over="ignore"):
        density = np.exp(2 * one + (depth - 1) * many - depth * outer) / np.pi
    return np.where(inside, density, np.where(x == 0, np.inf, 0.0))[()]


def log_sines(u: Result, depth: Result) -> tuple[Result, Result, Result]:
    """ln sin of (L+1) p, p and L p, where (L+1) p = pi - s and s = 2 arctan(e^u): precise at both ends of p's range."""
    s, rest = 2 * np.arctan(np.exp(u)), 2 * np.arctan(np.exp(-u))
    p = rest / (depth + 1)
    many = np.where(u < 0, (np.pi + depth * s) / (depth + 1), depth * p)  # sin(pi - L p) = sin(L p)
    return np.log(2) - np.logaddexp(u, -u), np.log(np.sin(p)), np.log(np.sin(many))
