"""Gains that let the log norm of the back-propagated error walk without drift."""

import numpy as np

from flowstudy.arguments import FLAG, NAME, takes
from flowstudy.theory.checks import Result, Values, check_choice, check_integer, check_number
from flowstudy.theory.mean_field.maps import mean_field

from .fluctuations import LIVE, WEIGHTS, log_layer_gain
from .spectrum import spectrum_variance

TANH_GAIN = 1.13  # "works well", says a comment in TensorFlow 1's initialiser; the paper has linear and ReLU only


@takes(activation=NAME, exact=FLAG, weights=NAME)
def random_walk_gain(activation: str, width: Values, exact: bool = False, *, weights: str = "gaussian") -> Result:
    """g such that weights of variance g^2 / width leave the mean of ln ||error signal|| unchanged by a layer.

    As published: exp(1 / 2N) for linear units, sqrt(2) exp(1.2 / (max(N, 6) - 2.4)) for ReLU.  For tanh the paper has
    no formula; 1.13 is from a comment in TensorFlow 1's initialiser.  Exact, from the mean log of a chi-squared
    variable: exp(-(psi(N/2) + ln(2/N)) / 2) for linear units; for ReLU psi is averaged over the number of live units,
    at least one: layers that are dead, and have no log, do not count.

    Args:
        activation: "linear", "relu", or, as published only, "tanh".
        width: N, the layer's fan_in, an integer of at least 1.
        exact: the mean for this width, instead of the published fit.
        weights: "gaussian", or (exact only) "orthogonal": W^T W = g^2 I.
    Returns:
        g, dimensionless, in the shape of `width`.
    Source: Sussillo & Abbott 2014 (arXiv:1412.6558).  The exact gains are derived here.  Kogler et al. 2026
    (arXiv:2602.10949) treat leaky ReLU, of a slope that is not 0, where no layer dies: another quantity.

    >>> [round(float(random_walk_gain("relu", 64, exact)), 6) for exact in (False, True)]
    [1.442033, 1.442861]
    """
    call = "random_walk_gain"
    n = check_integer(call, "width", width)
    check_choice(call, "weights", weights, WEIGHTS if exact else ("gaussian",),
                 "" if exact else " The published gains are for Gaussian weights: pass exact=True.")
    known = tuple(LIVE) if exact else (*LIVE, "tanh")
    check_choice(call, "activation", activation, known, " For tanh only 1.13 is known." if exact else "")
    if exact:
        return np.exp(-log_layer_gain(n, activation, weights).mean / 2)
    if activation == "linear":
        return np.exp(1 / (2 * n))
    if activation == "relu":
        return np.sqrt(2) * np.exp(1.2 / (np.maximum(n, 6) - 2.4))
    return np.full_like(n, TANH_GAIN)[()]


@takes(activation=NAME, weights=NAME)
def random_walk_drift(activation: str, width: Values, gain: Values, *, weights: str = "gaussian") -> Result:
    """Mean change of ln ||error signal||^2 by a layer of gain g without biases: what `random_walk_gain` makes 0.

    Exact for linear and ReLU units. For others, at the length map's fixed point, to the order 1 / N:
    ln chi_1 - (3 mu_2 / mu_1^2 - 1) / (2 N), mu_k = E phi'^(2k). With tanh, ln chi_1 is of the order (g^2 - 1)^2: many
    gains will do.

    Args:
        activation: "linear" or "relu"; with Gaussian weights any that `mean_field` knows.
        width: N, the layer's fan_in, an integer of at least 1.
        gain: g, positive: weights have variance g^2 / N, or W^T W = g^2 I.
        weights: "gaussian" or "orthogonal".
    Returns:
        [nats per layer].

    >>> [round(float(random_walk_drift("tanh", width, 1.13)), 3) for width in (20, 1000)]
    [-0.039, 0.015]
    """
    call = "random_walk_drift"
    n, g = check_integer(call, "width", width), check_number(call, "gain", gain)
    check_choice(call, "weights", weights, WEIGHTS)
    if activation in LIVE:
        return 2 * np.log(g) + log_layer_gain(n, activation, weights).mean
    check_choice(call, "weights", weights, ("gaussian",), f" For {activation} the drift at finite width is Gaussian.")
    point = mean_field(activation, g**2)
    ratio = spectrum_variance(activation, 1, "orthogonal", point.q) + 1
    return np.log(point.chi_1) - (3 * ratio - 1) / (2 * n)
