"""Wide plain nets layer by layer from any start, where `mean_field` gives only the limit of large depth."""

import numpy as np
import pandas as pd

from flowstudy.arguments import in_short
from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Values, check_number, depth_to_walk

from .activations import activation_named
from .maps import NON_NEGATIVE, check_correlation, variances


def plain(activation: str, depth: Values, weight_var: Values, bias_var: Values = 0.0, q0: Values = 1.0,
          c0: Values = 0.5) -> pd.DataFrame:
    """Signal and gradient of two inputs in a plain net of infinite width, a row per layer.

    Args:
        depth: hidden layers, x' = phi(W x + b).
        weight_var: variance of a weight times fan_in; `bias_var` of a bias.
        q0: mean square of an input's entries, the same for both inputs; `c0` their cosine.

    Returns:
        `layer`, 1 is next to the input.  `length`: mean square of the preactivations (the q of `mean_field`).
        `q`, `c`: mean square of the layer's outputs, and the cosine between the two inputs' (gradient_flow's
        `activation_mean_square` and `activation_correlation`).  `chi`: mean squared singular value of the layer's
        Jacobian.  `mean_squared`: of the Jacobian from the input to here, the product of chi.
        `gradient_correlation`: cosine between what the two inputs send back, from here to the input, of one and the
        same random error signal; for relu the product of 1 - acos(c) / pi.

    Raises:
        ValueError: an unknown activation, a depth below 1, a negative variance, a cosine beyond 1.

    Source: Schoenholz et al. 2017 (arXiv:1611.01232).

    >>> plain("tanh", depth=10, weight_var=1.0)["mean_squared"].round(6).tolist()[::9]
    [0.464403, 0.07137]
    """
    call = "plain"
    phi = activation_named(call, activation)
    for name, value in {"depth": depth, "weight_var": weight_var, "bias_var": bias_var, "q0": q0, "c0": c0}.items():
        one_number(call, name, value)
    depth = depth_to_walk(call, depth)
    w, b = variances(call, weight_var, bias_var)
    q, c = check_number(call, "q0", q0, NON_NEGATIVE), check_correlation(call, "c0", c0)
    rows = []
    for _ in range(depth):
        length = w * q + b
        c = np.clip((w * q * c + b) / length, -1, 1) if length > 0 else c
        pairs, slopes = phi.pairs(length), phi.squared_slope(length)
        kept = pairs.slope_covariance(c) / slopes if slopes > 0 else np.nan
        q, covariance = phi.mean_square(length), pairs.covariance(c)
        c = covariance / q if q > 0 else c
        rows.append((length, q, c, w * slopes, kept))
    frame = pd.DataFrame(np.array(rows), columns=["length", "q", "c", "chi", "gradient_correlation"])
    frame["gradient_correlation"] = frame["gradient_correlation"].cumprod()
    frame.insert(0, "layer", np.arange(1, depth + 1))
    frame.insert(5, "mean_squared", frame["chi"].cumprod())
    return frame


def one_number(call: str, name: str, value: Values) -> None:
    if np.ndim(value):
        raise RefusalError(f"{call}: `{name}` must be one number, got {in_short(value)}. Call it once per net.")
