"""Moments and edge of the squared singular values of a plain net's Jacobian, J = D_L W_L ... D_1 W_1."""

import numpy as np
from scipy.special import erf

from .checks import Moments, Result, Values, check_choice, check_integer, check_number
from .fluctuations import LIVE, WEIGHTS, check

MASKS = (*LIVE, "hard_tanh")  # slopes are 0 or 1


def second_moment(width: Values, depth: Values, activation: str, weight_var: Values | None = None) -> Result:
    """E (1/n) tr (J J^T)^2, square Gaussian layers without biases: exact at finite width.

    Per layer, with p the probability of a live unit, a = E (1/n) tr (J J^T)^2 and r = E ((1/n) tr J J^T)^2 follow a
    linear recursion, whose solution for weight_var p = 1 is
    a = (n + 2)/3 (1 + (3/p - 1)/n)^depth - (n - 1)/3 (1 - 1/n)^depth; it tends to depth / p + 1 as n grows.
    r is the second moment of `mean_squared`: its variance plus its mean squared.

    Args:
        width: n, units a layer, an integer of at least 1.
        depth: layers, an integer of at least 1.
        activation: "linear" or "relu".
        weight_var: variance of a weight times width; None is the critical one, 1 linear, 2 ReLU, where
            E (1/n) tr J J^T = 1.

    >>> [round(float(second_moment(64, 10, activation)), 6) for activation in ("linear", "relu")]
    [11.986831, 28.738065]
    """
    n, depth, weight_var = check("second_moment", width, depth, activation, "gaussian", weight_var)
    square, ratio = mean_square_growth(n, depth, LIVE[activation])
    return (weight_var * LIVE[activation]) ** (2 * depth) * square * (1 - (n - 1) / 3 * ratio)


def mean_squared(width: Values, depth: Values, activation: str, weight_var: Values | None = None) -> Moments:
    """Mean and variance over nets of the mean squared singular value (1/n) tr J J^T, as `second_moment`: exact.

    Args: as `second_moment`.
    """
    n, depth, weight_var = check("mean_squared", width, depth, activation, "gaussian", weight_var)
    square, ratio = mean_square_growth(n, depth, LIVE[activation])
    mean = (weight_var * LIVE[activation]) ** depth
    return Moments(mean + np.zeros_like(square), mean**2 * (square - 1 + square * 2 * (n - 1) / (3 * n) * ratio))


def mean_square_growth(n: np.ndarray, depth: np.ndarray, live: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the eigenvalues of the recursion of (a, r): larger^depth, and (smaller / larger)^depth - 1.

    The larger is the growth of E ||J u||^4; the recursion's matrix is a multiple of 1 plus one of [[1, n], [2/n, 0]].
    """
    with np.errstate(divide="ignore"):
        larger, smaller = depth * np.log1p((3 / live - 1) / n), depth * np.log1p(-1 / n)
    return np.exp(larger), np.expm1(smaller - larger)


def spectrum_edge(activation: str, depth: Values, weights: str = "gaussian", q: Values | None = None) -> Result:
    """Largest squared singular value over the mean squared one, infinite width; finite nets lie below, by O(n^-2/3).

    min over m > 0 of ((1 + m) / m) / S(m), S the product of the layers' S-transforms: 1 / (1 + m) for Gaussian weights,
    1 for orthogonal ones, p (1 + m) / (p + m) for slopes that are 1 with probability p, else 0. About e depth / p.

    Args:
        activation: "linear", "relu" or "hard_tanh".
        depth: layers, an integer of at least 1.
        weights: "gaussian" or "orthogonal".
        q: mean square of the preactivations, positive; hard_tanh alone needs it: p = erf(1 / sqrt(2 q)).
    Source: Pennington, Schoenholz, Ganguli 2018 (arXiv:1802.09979).

    >>> [round(float(spectrum_edge("relu", 8, weights)), 4) for weights in ("gaussian", "orthogonal")]
    [43.549, 20.372]
    """
    call = "spectrum_edge"
    depth = check_integer(call, "depth", depth)
    check_choice(call, "activation", activation, MASKS)
    check_choice(call, "weights", weights, WEIGHTS)
    p, depth = np.broadcast_arrays(live_probability(call, activation, q), depth)
    if weights == "gaussian":  # m solves L m (1 + m) = p + m
        m = 2 * p / (depth - 1 + np.sqrt((depth - 1) ** 2 + 4 * depth * p))
        return np.exp(np.log1p(1 / m) + depth * np.log1p(m / p))
    rest = depth * (1 - p) - 1  # L (1 - p) m = p + m where this is positive; else m is infinite: an atom at the edge
    m = p / np.where(rest > 0, rest, 1.0)
    return np.where(rest > 0, np.exp(np.log1p(1 / m) + depth * np.log((1 + m / p) / (1 + m))), p**-depth)[()]


def live_probability(call: str, activation: str, q: Values | None) -> np.ndarray:
    if activation in LIVE:
        return np.float64(LIVE[activation])
    if q is None:
        raise ValueError(f"{call}: `q` must be the mean square of the preactivations for {activation}, got None.")
    return erf(1 / np.sqrt(2 * check_number(call, "q", q)))
