"""Signal propagation in wide residual nets: y = x + H, H = phi(W x + b)."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from flowstudy.theory.checks import Values, depth_to_walk

from .activations import Activation, activation_named
from .highway import LEAST, MOST, first_state
from .layer_by_layer import table_of_layers
from .maps import variances
from .plain import one_number


def residual_net(activation: str, depth: Values, weight_var: Values, q0: Values = 1.0, m0: Values = 0.0,
                 c0: Values = 0.5, *, bias_var: Values = 0.0) -> pd.DataFrame:
    """Signal and gradient of two inputs in a stack of residual layers of infinite width, a row per layer.

    W is independent of x, so a unit's H and x are independent of each other.  With h ~ N(0, weight_var q + bias_var):
    m' = m + E H,   q' = q + 2 m E H + E H^2,   q_ab' = q_ab + 2 m E H + E H_a H_b,
    chi = 1 + weight_var E H'^2,   chi_ab = 1 + weight_var E H_a' H_b'.
    These are the equations of `highway` with 1 in place of both T and 1 - T.

    Limits: as those of `highway`.  A ReLU net has one more singular value, the mean mode, which grows by q'/q per layer
    instead of chi (2.90 instead of 2 with He's weights).  What it adds to E||J^T v||^2 at finite width, `mean_mode` has
    (at width 200 it is more than half of the whole from 12 layers on).  A read-out orthogonal to the mean output does
    not see it.

    Args:
        activation: of H, as in `mean_field`.
        depth: residual layers (a `ResidualNet` has depth - 1 of them, behind a plain layer).
        weight_var: variance of an entry of W times fan_in; 2 is he_normal.
        q0, m0: mean square and mean of the first layer's inputs, the same for both.
        c0: cosine between the two inputs.
        bias_var: variance of b.

    Returns:
        The columns of `highway` but P: `layer`, `q`, `m`, `c`, `chi`, `mean_squared`, `gradient_correlation`.

    Raises:
        ValueError: an unknown activation, a depth below 1, a negative variance, a mean beyond the root mean square.

    Source: Yang & Schoenholz 2017 (arXiv:1712.08969) for activations of mean 0; the mean derived here.

    >>> residual_net("relu", depth=2, weight_var=2.0)["mean_squared"].tolist()
    [2.0, 4.0]
    """
    call = "residual_net"
    phi = activation_named(call, activation)
    one_of_each = {"depth": depth, "weight_var": weight_var, "q0": q0, "m0": m0, "c0": c0, "bias_var": bias_var}
    for name, value in one_of_each.items():
        one_number(call, name, value)
    depth = depth_to_walk(call, depth)
    w, b = map(float, variances(call, weight_var, bias_var))
    first = first_state(call, q0, m0, c0)
    return table_of_layers(ResidualState(first.log_q, first.m, first.c), partial(residual_step, phi, w, b), depth)


@dataclass(frozen=True)
class ResidualState:
    """Two inputs at one layer, and the Jacobian so far; see `Signals`."""

    log_q: float
    m: float
    c: float
    chi: float = 1.0
    log_mean_squared: float = 0.0
    gradient_correlation: float = 1.0


def residual_step(phi: Activation, weight_var: float, bias_var: float, now: ResidualState) -> ResidualState:
    q = np.exp(np.clip(now.log_q, np.log(LEAST), np.log(MOST)))  # beyond, ratios to q no longer change
    length = weight_var * q + bias_var
    pairs = phi.pairs(np.asarray(length))
    c_h = np.asarray((weight_var * q * now.c + bias_var) / length if length > 0 else now.c)
    mean = phi.mean(phi.value, length) / np.sqrt(q)
    mixed = 2 * now.m * mean
    grown = 1 + mixed + phi.mean_square(length) / q
    c = (now.c + mixed + pairs.covariance(c_h) / q) / grown
    chi, chi_ab = (1 + weight_var * kept for kept in (phi.squared_slope(length), pairs.slope_covariance(c_h)))
    return ResidualState(
        log_q=float(now.log_q + np.log(grown)), m=float((now.m + mean) / np.sqrt(grown)),
        c=float(np.clip(c, -1, 1)), chi=float(chi), log_mean_squared=float(now.log_mean_squared + np.log(chi)),
        gradient_correlation=float(now.gradient_correlation * chi_ab / chi))
