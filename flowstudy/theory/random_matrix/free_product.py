"""Singular values of a product of different layers carry_l I + gain_l G_l, as the width goes to infinity.

S-transforms of free factors multiply, and one layer's is 1 / y(1 + z) (`residual_squared_gain`): the squared singular
value x and z = x G(x) - 1, G the Stieltjes transform, obey ln x = ln(1 + z) - ln z + sum_l ln y_l(1 + z), and the
density of ln x is -Im z / pi. With theta = -arg z from 0 (the largest value) to pi (the smallest), the modulus of z is
the root of Im ln x = 0.

Source: Voiculescu 1987 (S-transform); Dozier & Silverstein 2007 (one layer).
"""

import numpy as np

from flowstudy.theory.checks import Result, Values, check_number

from .carry_and_gain import squares

ANGLES = 150       # nodes of theta: quantiles to about 1e-3
HALVINGS = 45     # of ln |z|, from LOG_RANGE down to 1e-12
LOG_RANGE = 60.0


def product_log_singular_values(quantile: Values, carry: np.ndarray, gain: np.ndarray) -> Result:
    """ln singular value at a quantile of the product's singular values.

    The law is close to that of residual and highway nets' Jacobians where carry and gain vary little from unit to unit:
    for small signals, or gates nearly shut. A ReLU net's largest singular value, its mean mode, lies above this law.

    Args:
        quantile: in (0, 1), counted from the smallest: (width - i + 1/2) / width for the i-th largest of `width`.
        carry: a_l, non-negative, (layer,).
        gain: g_l, non-negative, (layer,); carry 0 and gain 1 in all layers is the law of Fuss and Catalan.
    Returns:
        [nats], at a quantile that is right to about 1e-3.

    >>> float(product_log_singular_values(0.5, np.full(9, 0.9), np.full(9, 0.1)).round(3))  # 9 ln 0.9: -0.948
    -0.945
    """
    call = "product_log_singular_values"
    quantile = check_number(call, "quantile", quantile, "between 0 and 1")
    a2, g2 = squares(call, np.atleast_1d(carry), np.atleast_1d(gain))
    theta = (np.arange(ANGLES) + 0.5) * np.pi / ANGLES
    low, high = np.full(ANGLES, -LOG_RANGE), np.full(ANGLES, LOG_RANGE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = log_squared(middle, theta, a2, g2).imag > 0  # Im ln x falls from theta to below 0 as |z| grows
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    log_x = log_squared(low, theta, a2, g2).real
    density = np.exp(low) * np.sin(theta) / np.pi
    above = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2 * -np.diff(log_x)))  # share of larger values
    return np.interp(1 - quantile, above, log_x / 2)[()]


def log_squared(log_size: Result, theta: Result, a2: Result, g2: Result) -> Result:
    """ln x at z = exp(log_size - i theta)."""
    z = np.exp(log_size - 1j * theta)
    t = 1 + z[:, None]
    y = (a2 + (2 * t - 1) * g2 + np.sqrt((a2 - g2) ** 2 + 4 * a2 * g2 * t)) / 2
    return np.log(1 + z) - (log_size - 1j * theta) + np.log(y).sum(-1)
