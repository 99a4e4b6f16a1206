"""Moments and edge of the squared singular values of a plain net's Jacobian, J = D_L W_L ... D_1 W_1."""

import numpy as np

from flowstudy.arguments import NAME, takes
from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Moments, Result, Values, check_choice, check_integer, check_number
from flowstudy.theory.mean_field.activations import activation_named

from .fluctuations import LIVE, WEIGHTS, check_net, full

MASKS = (*LIVE, "hard_tanh")  # slopes are 0 or 1
LARGEST_LOG = 700.0           # exp of more is near the end of float64


@takes(activation=NAME)
def second_moment(width: Values, depth: Values, activation: str, weight_var: Values | None = None) -> Result:
    """E (1/n) tr (J J^T)^2, square Gaussian layers without biases: exact at finite width.

    Per layer, with p the probability of a live unit, a = E (1/n) tr (J J^T)^2 and r = E ((1/n) tr J J^T)^2 follow a
    linear recursion, whose solution for weight_var p = 1 is
    a = (n + 2)/3 (1 + (3/p - 1)/n)^depth - (n - 1)/3 (1 - 1/n)^depth; it tends to depth / p + 1 as n grows.
    r is the second moment of `mean_squared`: its variance plus its mean squared. Derived from Wick's theorem for one
    more layer; we know no published source.

    Args:
        width: n, units a layer, an integer of at least 1.
        depth: layers, an integer of at least 1.
        activation: "linear" or "relu".
        weight_var: variance of a weight times width; None is the critical one, 1 linear, 2 ReLU, where
            E (1/n) tr J J^T = 1.

    Returns:
        Dimensionless, in the arguments' common shape.

    >>> [round(float(second_moment(64, 10, activation)), 6) for activation in ("linear", "relu")]
    [11.986831, 28.738065]
    """
    n, depth, weight_var = check_net("second_moment", width, depth, activation, "gaussian", weight_var)
    growth, ratio = mean_square_growth(n, depth, LIVE[activation])
    with np.errstate(over="ignore"):
        return (weight_var * LIVE[activation]) ** (2 * depth) * np.exp(growth) * (1 - (n - 1) / 3 * ratio)


@takes(activation=NAME)
def mean_squared(width: Values, depth: Values, activation: str, weight_var: Values | None = None) -> Moments:
    """Mean and variance over nets of the mean squared singular value (1/n) tr J J^T, as `second_moment`: exact.

    Args: as `second_moment`.
    Returns:
        (mean, variance), dimensionless, float64.
    """
    n, depth, weight_var = check_net("mean_squared", width, depth, activation, "gaussian", weight_var)
    growth, ratio = mean_square_growth(n, depth, LIVE[activation])
    with np.errstate(over="ignore", invalid="ignore"):
        mean = (weight_var * LIVE[activation]) ** depth
        relative = np.expm1(growth) + np.exp(growth) * 2 * (n - 1) / (3 * n) * ratio
        return full(mean, mean**2 * np.where(growth < LARGEST_LOG, relative, np.inf))


def mean_square_growth(n: Result, depth: Result, live: float) -> tuple[Result, Result]:
    """ln larger^depth, and (smaller / larger)^depth - 1, of the two eigenvalues of the recursion of (a, r).

    The larger is the growth of E ||J u||^4; the recursion's matrix is a multiple of 1 plus one of [[1, n], [2/n, 0]].
    """
    with np.errstate(divide="ignore"):
        larger, smaller = depth * np.log1p((3 / live - 1) / n), depth * np.log1p(-1 / n)
    return larger, np.expm1(smaller - larger)


@takes(activation=NAME, weights=NAME)
def spectrum_variance(activation: str, depth: Values, weights: str = "gaussian", q: Values | None = None) -> Result:
    """Variance of the squared singular values over their mean squared, infinite width: sigma^2_JJT / m_1^2.

    depth (mu_2 / mu_1^2 - 1 - s_1), mu_k = E phi'(sqrt(q) z)^(2k), s_1 = -1 Gaussian, 0 orthogonal;
    the mean is m_1 = (weight_var mu_1)^depth. Linear: depth, and 0 orthogonal; ReLU: 2 depth, and depth.

    Args:
        activation: "linear", "relu", "leaky_relu", "tanh", "hard_tanh", "erf", "gelu" or "sigmoid".
        depth: layers, an integer of at least 1.
        weights: "gaussian" or "orthogonal".
        q: mean square of the preactivations, non-negative, the same in all layers; linear and the ReLUs do without.
    Returns:
        Dimensionless, in the arguments' common shape.
    Source: Pennington, Schoenholz, Ganguli 2018 (arXiv:1802.09979).

    >>> round(float(spectrum_variance("tanh", 1, "orthogonal", q=0.5)), 6)
    0.299244
    """
    call = "spectrum_variance"
    depth = check_integer(call, "depth", depth)
    check_choice(call, "weights", weights, WEIGHTS)
    mu_1, mu_2 = (slope_moment(call, k, activation, q) for k in (1, 2))
    return depth * (mu_2 / mu_1**2 - 1 + (weights == "gaussian"))


@takes(activation=NAME, weights=NAME)
def spectrum_edge(activation: str, depth: Values, weights: str = "gaussian", q: Values | None = None) -> Result:
    """Largest squared singular value over the mean squared one, infinite width; finite nets lie below, by O(n^-2/3).

    min over m > 0 of ((1 + m) / m) / S(m), S the product of the layers' S-transforms: 1 / (1 + m) for Gaussian weights,
    1 for orthogonal ones, p (1 + m) / (p + m) for slopes that are 1 with probability p, else 0.  In deep nets about
    e depth / p for Gaussian weights, e depth (1 - p) / p for orthogonal ones.

    Args:
        activation: "linear", "relu" or "hard_tanh".
        depth: layers, an integer of at least 1.
        weights: "gaussian" or "orthogonal".
        q: mean square of the preactivations, non-negative; hard_tanh alone needs it: p = erf(1 / sqrt(2 q)).
    Returns:
        A ratio, at least 1, in the arguments' common shape.
    Source: Pennington, Schoenholz, Ganguli 2018 (arXiv:1802.09979).

    >>> [round(float(spectrum_edge("relu", 8, weights)), 4) for weights in ("gaussian", "orthogonal")]
    [43.549, 20.372]
    """
    call = "spectrum_edge"
    depth = check_integer(call, "depth", depth)
    check_choice(call, "activation", activation, MASKS)
    check_choice(call, "weights", weights, WEIGHTS)
    p, depth = np.broadcast_arrays(slope_moment(call, 1, activation, q), depth)
    if weights == "gaussian":  # m solves L m (1 + m) = p + m
        m = 2 * p / (depth - 1 + np.sqrt((depth - 1) ** 2 + 4 * depth * p))
        return np.exp(np.log1p(1 / m) + depth * np.log1p(m / p))
    rest = depth * (1 - p) - 1  # L (1 - p) m = p + m where this is positive; else m is infinite: an atom at the edge
    m = p / np.where(rest > 0, rest, 1.0)
    atom = np.where(rest > 0, 1.0, p) ** -depth  # of shallow nets alone: of deep ones it would overflow
    return np.where(rest > 0, np.exp(np.log1p(1 / m) + depth * np.log((1 + m / p) / (1 + m))), atom)[()]


def slope_moment(call: str, k: int, activation: str, q: Values | None) -> Result:
    """mu_k = E phi'(sqrt(q) z)^(2k); of piecewise linear slopes 0 and 1, the probability of 1."""
    phi = activation_named(call, activation)
    if activation in LIVE:
        return np.float64(LIVE[activation])
    if q is None and phi.gain is None:
        raise RefusalError(f"{call}: `q` must be the mean square of the preactivations for {activation}, got None.")
    q = check_number(call, "q", 1.0 if q is None else q, "non-negative and finite")
    return phi.squared_slope(q) if k == 1 else phi.mean(lambda h: phi.slope(h) ** (2 * k), q)
