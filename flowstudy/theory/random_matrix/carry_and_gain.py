"""Products of layers carry I + gain G, G Gaussian with entries N(0, 1 / width): linear residual and highway nets.

A highway layer of gate s and linear H has carry 1 - s and gain s sqrt(H's weight_var); carry 0 is the plain layer.

The free law is S^-1 of J J^T for one layer, from Dozier & Silverstein 2007 (Journal of Multivariate Analysis 98, 678);
in this closed form we know no published source. Exact at finite width for I + X / c: Forrester & Zhang 2018
(arXiv:1805.05529).
"""

import numpy as np

from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Result, Values, check_integer, check_number

from .roots import rising_root

LOG_RANGE = 100.0  # |ln m| in the search for the edge: gain / carry down to e^-50, where the edge is 1 to the last bit


def residual_squared_gain(quantile: Values, carry: Values, gain: Values) -> Result:
    """y(t) = [a^2 + (2t - 1) g^2 + sqrt(a^4 + 2 a^2 g^2 (2t - 1) + g^4)] / 2, as the width goes to infinity.

    exp(2 lyapunov exponent) at quantile t, from max(0, a^2 - g^2) at t = 0 to a^2 + g^2 at t = 1. The S-transform of
    one layer's J J^T is 1 / y(1 + m).

    Args:
        quantile: t in [0, 1], counted from the smallest: (width - i + 1/2) / width for the i-th largest of `width`.
        carry: a, non-negative.
        gain: g, non-negative; not both zero.
    Returns:
        Squared gain per layer, dimensionless, in the arguments' common shape.
    """
    a2, g2 = squares("residual_squared_gain", carry, gain)
    return squared_gain(check_number("residual_squared_gain", "quantile", quantile, "between 0 and 1"), a2, g2)


def residual_lyapunov_exponents(quantile: Values, carry: Values, gain: Values) -> Result:
    """ln singular value per layer at a quantile, in the limits of width, then depth: ln(y) / 2.

    Their mean is ln a where a >= g; a = 0 gives Newman's triangular law ln(g sqrt t).

    Args: as `residual_squared_gain`.
    Returns:
        [nats per layer]; -inf at quantile 0 where carry <= gain.
    """
    call = "residual_lyapunov_exponents"
    a2, g2 = squares(call, carry, gain)
    with np.errstate(divide="ignore"):
        return np.log(squared_gain(check_number(call, "quantile", quantile, "between 0 and 1"), a2, g2)) / 2


def residual_edge(depth: Values, carry: Values, gain: Values) -> Result:
    """Largest squared singular value of `depth` layers over the mean squared one, (a^2 + g^2)^depth, infinite width.

    min over m > 0 of ((1 + m) / m) (y(1 + m) / (a^2 + g^2))^depth. Finite nets lie below: some 5 % at width 300 and
    depth 40.

    Args:
        depth: layers, an integer of at least 1.
        carry, gain: as `residual_squared_gain`.
    Returns:
        A ratio, at least 1, in the arguments' common shape.
    """
    depth = check_integer("residual_edge", "depth", depth)
    depth, a2, g2 = np.broadcast_arrays(depth, *squares("residual_edge", carry, gain))

    def slope(log_m: Result) -> Result:  # of the logarithm, times m (1 + m)
        m = np.exp(log_m)
        y, root = squared_gain(1 + m, a2, g2), discriminant(1 + m, a2, g2)
        return depth * (g2 * m) * (1 + m) * (1 + a2 / root) / y - 1

    m = np.exp(rising_root(slope, -LOG_RANGE, LOG_RANGE, depth.shape))
    return (np.exp(np.log1p(1 / m) + depth * np.log(squared_gain(1 + m, a2, g2) / (a2 + g2))))[()]


def residual_largest_exponent(width: Values, carry: Values, gain: Values) -> Result:
    """The largest Lyapunov exponent at finite width, exact: E ln || (a I + g G) u ||.

    The squared norm is g^2 / n times a non-central chi-squared variable, whose Laplace transform M gives
    E ln X = integral over s > 0 of (e^-s - M(s)) / s.

    Args:
        width: n, an integer of at least 1.
        carry, gain: as `residual_squared_gain`.
    Returns:
        [nats per layer].
    """
    width = check_integer("residual_largest_exponent", "width", width)
    a2, g2 = squares("residual_largest_exponent", carry, gain)
    mean = a2 + g2
    # In ln s the integrand is analytic in a strip of half-width pi/2 and decays as e^2v and e^-v/2: this trapezoid's
    # error is below 1e-16.
    step = 0.08
    s = np.exp(np.arange(-20.0, 80.0, step))
    carried, spread = ((part / mean)[..., None] for part in (a2, g2))
    wider = 2 * s * spread / width[..., None]
    transform = np.exp(-width[..., None] / 2 * np.log1p(wider) - carried * s / (1 + wider))
    return (np.log(mean) + step * (np.exp(-s) - transform).sum(-1)) / 2


def squared_gain(t: Result, a2: Result, g2: Result) -> Result:
    level, root = a2 + (2 * t - 1) * g2, discriminant(t, a2, g2)
    with np.errstate(invalid="ignore", divide="ignore"):
        small = 2 * t * (1 - t) * g2**2 / (root - level)  # the same, where level < 0 would cancel
    return np.where(level < 0, small, (level + root) / 2)[()]


def discriminant(t: Result, a2: Result, g2: Result) -> Result:
    return np.sqrt((a2 - g2) ** 2 + 4 * a2 * g2 * t)


def squares(call: str, carry: Values, gain: Values) -> tuple[Result, Result]:
    a, g = (check_number(call, name, value, "non-negative and finite")
            for name, value in (("carry", carry), ("gain", gain)))
    if any(m != n and 1 not in (m, n) for m, n in zip(a.shape[::-1], g.shape[::-1], strict=False)):
        raise RefusalError(f"{call}: `carry` and `gain` must have shapes that broadcast, got {a.shape} and {g.shape}.")
    if np.any((a == 0) & (g == 0)):
        raise RefusalError(f"{call}: `carry` and `gain` must not both be 0: such layers pass nothing on.")
    return a**2, g**2
