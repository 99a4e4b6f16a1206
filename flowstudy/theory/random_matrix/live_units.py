"""How many units of a ReLU layer are live, and what follows: digamma averages, and the Jacobian's rank.

With symmetric weights and zero biases a unit is on with probability 1/2, independently of the others and of the layers
before (flip the sign of its row of weights): the number of live units is Binomial(width, 1/2) at any finite width.

Source: Hanin 2018 (arXiv:1801.03744); Hanin & Nica 2020, Communications in Mathematical Physics 376, 287.
"""

from functools import lru_cache

import numpy as np
from scipy.special import bdtrc, digamma, polygamma

from flowstudy.arguments import NAME, takes
from flowstudy.theory.checks import Result, Values, check_choice, check_integer

SPREAD = 6  # half-width of the sums in units of sqrt(width); the rest has a probability below 2 e^-72 (Hoeffding)


@takes(activation=NAME)
def expected_rank(width: Values, depth: Values, activation: str = "relu") -> Result:
    """Mean rank of the Jacobian of `depth` square layers: exactly the fewest live units of any layer.

    E min = sum over j of P(a layer has at least j live units)^depth. Zero where a layer is dead.

    Args:
        width: units a layer, an integer of at least 1.
        depth: layers, an integer of at least 1.
        activation: "relu", or "linear", whose Jacobians have full rank.

    Returns:
        A number from 0 to `width`, in the arguments' common shape.

    >>> float(expected_rank(64, 10).round(2))
    25.86
    """
    width, depth = check_integer("expected_rank", "width", width), check_integer("expected_rank", "depth", depth)
    check_choice("expected_rank", "activation", activation, ("relu", "linear"))
    return rank_of(width, depth) if activation == "relu" else np.broadcast_arrays(width, depth)[0] + 0.0


@np.vectorize
def rank_of(width: float, depth: float) -> float:
    low = max(0.0, np.floor(width / 2 - SPREAD * np.sqrt(width)))  # so many are always live
    j = np.arange(low + 1, min(width, width / 2 + SPREAD * np.sqrt(width)) + 1)
    return float(low + (bdtrc(j - 1, width, 0.5) ** depth).sum())


@lru_cache(maxsize=1024)
def live_digamma(width: float) -> tuple[float, float, float]:
    """Mean and variance of psi(k/2), and mean of psi'(k/2), k the live units of a layer that has at least one."""
    low = max(1.0, np.ceil(width / 2 - SPREAD * np.sqrt(width)))
    k = np.arange(low, min(width, width / 2 + SPREAD * np.sqrt(width)) + 1)
    log_weight = np.cumsum(np.log((width - k + 1) / k))  # binomial coefficients by their ratios
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    psi = digamma(k / 2)
    mean = weight @ psi
    return float(mean), float(weight @ (psi - mean) ** 2), float(weight @ polygamma(1, k / 2))
