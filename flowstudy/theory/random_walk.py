"""Gains that let the log norm of the back-propagated error walk without drift."""

import numpy as np

from .checks import Result, Values, check_choice, check_integer
from .fluctuations import LIVE, WEIGHTS, log_layer_gain

TANH_GAIN = 1.13  # found by trial in the paper, at width 100 and beyond; no formula is given


def random_walk_gain(activation: str, width: Values, exact: bool = False, *, weights: str = "gaussian") -> Result:
    """g such that weights of variance g^2 / width leave the mean of ln ||error signal|| unchanged by a layer.

    As published: exp(1 / 2N) for linear units, sqrt(2) exp(1.2 / (max(N, 6) - 2.4)) for ReLU, 1.13 for tanh. Exact,
    from the mean log of a chi-squared variable: exp(-(psi(N/2) + ln(2/N)) / 2) for linear units; for ReLU psi is
    averaged over the number of live units, at least one.

    Args:
        activation: "linear", "relu", or, as published only, "tanh".
        width: N, the layer's fan_in, an integer of at least 1.
        exact: the mean for this width, instead of the published fit.
        weights: "gaussian", or (exact only) "orthogonal": W^T W = g^2 I.
    Source: Sussillo & Abbott 2014 (arXiv:1412.6558). Exact for ReLU: Kogler et al. 2026 (arXiv:2602.10949).

    >>> [round(float(random_walk_gain("relu", 64, exact)), 6) for exact in (False, True)]
    [1.442033, 1.442861]
    """
    call = "random_walk_gain"
    n = check_integer(call, "width", width)
    check_choice(call, "weights", weights, WEIGHTS if exact else ("gaussian",),
                 "" if exact else " The published gains are for Gaussian weights: pass exact=True.")
    known = tuple(LIVE) if exact else (*LIVE, "tanh")
    check_choice(call, "activation", activation, known, " For tanh only the published 1.13 is known." if exact else "")
    if exact:
        return np.exp(-log_layer_gain(n, activation, weights).mean / 2)
    if activation == "linear":
        return np.exp(1 / (2 * n))
    if activation == "relu":
        return np.sqrt(2) * np.exp(1.2 / (np.maximum(n, 6) - 2.4))
    return np.full_like(n, TANH_GAIN)[()]
