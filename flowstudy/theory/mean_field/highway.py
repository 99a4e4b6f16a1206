"""Signal propagation in wide highway nets: y = T H + (1 - T) x, T = sigmoid(W_T x + b_T), H = phi(W_H x + b_H).

W_H and W_T are independent Gaussian, so at infinite width a unit's T, H and x are independent of each other: means of
products are products of means.  T is normal-sigmoid, its moments come from `gate`; x enters by its moments alone.  All
quantities below are in units of the root mean square of x, so that they stay in range at any depth.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import expit

from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Values, check_number, depth_to_walk

from .activations import Activation, activation_named
from .gaussian import gaussian_nodes, hermite_table, power_series, series_size
from .layer_by_layer import table_of_layers
from .maps import NON_NEGATIVE, check_correlation, variances
from .plain import one_number

LEAST, MOST = 1e-200, 1e8  # range of q; outside of it ratios to q stay the same: layers are linear, or gates 0 or 1


def highway(activation: str, depth: Values, gate_bias: Values, weight_var: Values, gate_weight_var: Values = 1.0,
            q0: Values = 1.0, m0: Values = 0.0, c0: Values = 0.5, *, bias_var: Values = 0.0) -> pd.DataFrame:
    """Signal and gradient of two inputs in a stack of highway layers of infinite width, a row per layer.

    With E over T ~ sigmoid(N(b_T, gate_weight_var q)) and h ~ N(0, weight_var q + bias_var), T' = T (1 - T):
    m' = E T E H + E(1-T) m,   q' = E T^2 E H^2 + 2 E T(1-T) E H m + E(1-T)^2 q,
    chi = weight_var E T^2 E H'^2 + gate_weight_var E T'^2 E(H - x)^2 + E(1-T)^2,
    and the same with two inputs for the covariances of signals and of gradients.  What it says: at initialisation a
    highway net does not keep gradient norms, E||gradient||^2 falls by chi per layer; it keeps conditioning (P) and
    coherence (the gradient correlation).

    Limits: fully connected layers of one width, Gaussian weights (N(0, weight_var / n) and N(0, gate_weight_var / n)),
    at initialisation; corrections are O(1 / n).  The Jacobian of a ReLU net has one more singular value, the mean
    mode, which grows by q'/q per layer instead of chi: P is that of all others, and at finite width E||J u||^2 is
    larger by its square over n: `mean_mode` has both.  Convolutional and trained nets are not covered.

    Args:
        activation: of H, as in `mean_field`.
        depth: highway layers (a `HighwayNet` has depth - 1 of them, behind a plain layer).
        gate_bias: b_T, the same in all layers.
        weight_var: variance of an entry of W_H times fan_in; 1 is lecun_normal, or glorot_normal of a square W_H; 2 is
            he_normal. gate_weight_var is that of W_T.
        q0, m0: mean square and mean of the first layer's inputs, the same for both; higher moments as a Gaussian's.
        c0: cosine between the two inputs.
        bias_var: variance of b_H.

    Returns:
        `layer`, 1 is next to the input.  `q`, `m`, `c`: mean square and mean of the layer's outputs, cosine between
        the two inputs'.  `chi`: mean squared singular value of the layer's Jacobian.  `mean_squared`: of the Jacobian
        J from the input to here, the product of chi.  `P`: (1/n) tr (J J^T)^2 over mean_squared^2; P - 1 is the
        relative variance of the squared singular values, 0 for an isometry.  `gradient_correlation`: cosine between
        what the two inputs send back of one and the same random error signal.

    Raises:
        ValueError: an unknown activation, a depth below 1, a negative variance, a mean beyond the root mean square.

    Source: derived for flowstudy; one modest search found no published recursion for feed-forward highway layers, which
    does not say that there is none. Nearest: Chen et al. 2018 and
    Gilboa et al. 2019 (gated recurrent nets), Yang & Schoenholz 2017 (residual nets).

    >>> last = highway("tanh", depth=50, gate_bias=-3.0, weight_var=1.0).iloc[-1]
    >>> last[["mean_squared", "P", "gradient_correlation"]].round(4).tolist()
    [0.0065, 1.5062, 0.9315]
    """
    call = "highway"
    phi = activation_named(call, activation)
    one_of_each = {"depth": depth, "gate_bias": gate_bias, "weight_var": weight_var, "gate_weight_var": gate_weight_var,
                   "q0": q0, "m0": m0, "c0": c0, "bias_var": bias_var}
    for name, value in one_of_each.items():
        one_number(call, name, value)
    depth = depth_to_walk(call, depth)
    init = Init(phi, *map(float, check_init(call, gate_bias, weight_var, gate_weight_var, bias_var)))
    if gate_bias == np.inf and not weight_var:
        raise RefusalError(f"{call}: `weight_var` must be positive where gate_bias is inf, got {weight_var!r}.")
    return table_of_layers(first_state(call, q0, m0, c0), partial(highway_step, init), depth,
                           also={"P": lambda state: state.second})


@dataclass(frozen=True)
class Init:
    """The biases and variances from which the weights of a stack of equal layers are drawn."""

    phi: Activation
    gate_bias: float
    weight_var: float
    gate_weight_var: float
    bias_var: float


@dataclass(frozen=True)
class HighwayState:
    """Two inputs at one layer, in units of their root mean square, and the Jacobian J so far; B = J J^T / mean_squared.

    Attributes:
        log_q: ln E x^2.  m, x3, x4: E x, E x^3, E x^4 in units of sqrt(q).
        c: cosine between the two inputs.
        diagonal, with_x, with_x2: E B_ii^2, E x_i B_ii, E x_i^2 B_ii.
        second: (1/n) tr B^2, the column P.
    """

    log_q: float
    m: float
    x3: float
    x4: float
    c: float
    diagonal: float
    with_x: float
    with_x2: float
    second: float = 1.0
    chi: float = 1.0
    log_mean_squared: float = 0.0
    gradient_correlation: float = 1.0


def first_state(call: str, q0: Values, m0: Values, c0: Values) -> HighwayState:
    q = float(check_number(call, "q0", q0))
    mean = float(check_number(call, "m0", m0, "a number"))
    c = float(check_correlation(call, "c0", c0))
    if mean**2 > q * (1 + 1e-12):
        raise RefusalError(f"{call}: `m0` must be at most sqrt(q0) = {q**0.5:.6g} in size, got {m0!r}.")
    if c < 2 * mean**2 / q - 1 - 1e-12:
        raise RefusalError(f"{call}: `c0` must be at least 2 m0^2 / q0 - 1 = {2 * mean**2 / q - 1:.6g}, got {c0!r}.")
    m = mean / np.sqrt(q)
    return HighwayState(log_q=np.log(q), m=m, x3=3 * m - 2 * m**3, x4=3 - 2 * m**4, c=c, diagonal=1.0, with_x=m,
                        with_x2=1.0)


def highway_step(init: Init, now: HighwayState) -> HighwayState:
    q = float(np.exp(np.clip(now.log_q, np.log(LEAST), np.log(MOST))))
    gate = Gate(init.gate_bias, init.gate_weight_var * q)
    length = init.weight_var * q + init.bias_var
    values = HiddenMoments(init.phi, length, q, init.weight_var, init.gate_weight_var * q)
    grown, m, x3, x4 = signal_moments(gate.moments, values, now)
    chi = mean_squared_gain(gate.moments, values, now)
    c, chi_ab = pair_step(init, gate, values, now, length, q)
    diagonal, with_x, with_x2, second = jacobian_moments(gate.moments, values, now, chi)
    unit = np.sqrt(grown)
    return HighwayState(
        log_q=now.log_q + np.log(grown), m=m / unit, x3=x3 / unit**3, x4=x4 / grown**2,
        c=float(np.clip(c / grown, -1, 1)), diagonal=diagonal, with_x=with_x / unit, with_x2=with_x2 / grown,
        second=second, chi=chi, log_mean_squared=now.log_mean_squared + np.log(chi),
        gradient_correlation=now.gradient_correlation * chi_ab / chi)


# --- one input -------------------------------------------------------------------------------------------------------


class Gate:
    """T = sigmoid(t), t ~ N(bias, var)."""

    def __init__(self, bias: float, var: float):
        self.bias, self.std = bias, float(np.sqrt(var))
        t, weight = gaussian_nodes(np.asarray(var))
        powers = np.arange(5)[:, None]
        self.moments = (weight * expit(bias + t) ** powers) @ (expit(-bias - t) ** powers).T  # E T^i (1 - T)^j

    def pairs(self, c: float) -> tuple[float, float]:
        """E T_a T_b and E T'_a T'_b of two inputs whose gates' preactivations have correlation c (Mehler)."""
        z, table = hermite_table(*series_size(self.std, np.pi))
        gate, shut = expit(self.bias + self.std * z), expit(-self.bias - self.std * z)
        squares = (table @ np.stack([gate, gate * shut], -1))**2
        rest = self.moments[[2, 2], [0, 2]] - squares.sum(0)  # of steep gates: what the terms left out make at c = 1
        return tuple(power_series(squares, np.asarray(c)) + rest * c**len(squares))


class HiddenMoments:
    """Moments of H in units of the root mean square of x, and the two variances that multiply the weights' parts."""

    def __init__(self, phi: Activation, length: float, q: float, weight_var: float, gate_weight_var: float):
        h, weight = gaussian_nodes(np.asarray(length), phi.kink_places)
        value, squared_slope = phi.value(h) / np.sqrt(q), phi.slope(h) ** 2
        self.of_value = [float((weight * value**k).sum()) for k in range(5)]                    # E H^k
        self.of_slope = [float((weight * squared_slope * value**k).sum()) for k in range(3)]    # E H'^2 H^k
        self.slope4 = float((weight * squared_slope**2).sum())                                  # E H'^4
        self.weight_var, self.gate_weight_var = weight_var, gate_weight_var


def signal_moments(gate: np.ndarray, values: HiddenMoments, now: HighwayState) -> list[float]:
    """E y^2, E y, E y^3, E y^4 of y = (1 - T) x + T H, by the binomial theorem."""
    of_x = [1.0, now.m, 1.0, now.x3, now.x4]
    binomial = {1: (1, 1), 2: (1, 2, 1), 3: (1, 3, 3, 1), 4: (1, 4, 6, 4, 1)}
    return [sum(times * gate[k - j, j] * values.of_value[k - j] * of_x[j] for j, times in enumerate(binomial[k]))
            for k in (2, 1, 3, 4)]


def mean_squared_gain(gate: np.ndarray, values: HiddenMoments, now: HighwayState) -> float:
    """chi = E (1-T)^2 + E gam^2, gam^2 = weight_var T^2 H'^2 + gate_weight_var T'^2 (H - x)^2."""
    h, of_slope = values.of_value, values.of_slope
    distance = h[2] - 2 * h[1] * now.m + 1
    return float(gate[0, 2] + values.weight_var * gate[2, 0] * of_slope[0]
                 + values.gate_weight_var * gate[2, 2] * distance)


def jacobian_moments(gate: np.ndarray, values: HiddenMoments, now: HighwayState, chi: float) -> tuple[float, ...]:
    """The next E B_ii^2, E y_i B_ii, E y_i^2 B_ii and (1/n) tr B^2.

    With a = 1 - T, J = diag(a) + (independent Gaussian rows of variance gam_i^2 / n), so that the diagonal obeys
    chi B'_ii = a_i^2 B_ii + gam_i^2, a unit's own a, H and x being what correlates its entries; and
    chi^2 tr B'^2 = chi^2 tr B^2 + Var(a^2) sum B_ii^2 + sum (2 a^2 gam^2 B_ii + gam^4).
    """
    v, w, h, s = values.weight_var, values.gate_weight_var, values.of_value, values.of_slope
    m, x3, x4, b1, b2 = now.m, now.x3, now.x4, now.with_x, now.with_x2
    from_h, from_t = v * gate[2:], w * gate[2:, 2:]  # [i, j]: E T^i (1-T)^j times the gate's part of gam^2's two terms
    with_b = from_h[0, 2] * s[0] + from_t[0, 2] * (h[2] - 2 * h[1] * b1 + b2)                    # E a^2 gam^2 B_ii
    distance2 = s[2] - 2 * s[1] * m + s[0]                                                       # E H'^2 (H - x)^2
    distance4 = h[4] - 4 * h[3] * m + 6 * h[2] - 4 * h[1] * x3 + x4                              # E (H - x)^4
    gam4 = v**2 * gate[4, 0] * values.slope4 + 2 * v * w * gate[4, 2] * distance2 + w**2 * gate[4, 4] * distance4
    diagonal = gate[0, 4] * now.diagonal + 2 * with_b + gam4
    second = now.second + ((gate[0, 4] - gate[0, 2] ** 2) * now.diagonal + 2 * with_b + gam4) / chi**2

    x_gam = from_h[0, 1] * s[0] * m + from_t[0, 1] * (h[2] * m - 2 * h[1] + x3)                  # E a x gam^2
    h_gam = from_h[1, 0] * s[1] + from_t[1, 0] * (h[3] - 2 * h[2] * m + h[1])                    # E T H gam^2
    with_x = gate[0, 3] * b1 + gate[1, 2] * h[1] + x_gam + h_gam

    xx_gam = from_h[0, 2] * s[0] + from_t[0, 2] * (h[2] - 2 * h[1] * x3 + x4)
    xh_gam = from_h[1, 1] * s[1] * m + from_t[1, 1] * (h[3] * m - 2 * h[2] + h[1] * x3)
    hh_gam = from_h[2, 0] * s[2] + from_t[2, 0] * (h[4] - 2 * h[3] * m + h[2])
    with_x2 = gate[0, 4] * b2 + 2 * gate[1, 3] * h[1] * b1 + gate[2, 2] * h[2] + xx_gam + 2 * xh_gam + hh_gam
    return diagonal / chi**2, with_x / chi, with_x2 / chi, second


# --- two inputs ------------------------------------------------------------------------------------------------------


def pair_step(init: Init, gate: Gate, values: HiddenMoments, now: HighwayState, length: float,
              q: float) -> tuple[float, float]:
    """E y_a y_b in units of q, and chi_ab, by which the covariance of two inputs' gradients is multiplied."""
    both_open, both_sloped = gate.pairs(now.c)
    open_ = gate.moments[1, 0]
    both_shut = 1 - 2 * open_ + both_open
    c_h = (init.weight_var * q * now.c + init.bias_var) / length if length > 0 else now.c
    pairs = init.phi.pairs(np.asarray(length))
    values_ab = float(pairs.covariance(np.asarray(c_h))) / q
    slopes_ab = float(pairs.slope_covariance(np.asarray(c_h)))
    mixed = values.of_value[1] * now.m
    covariance = both_open * values_ab + 2 * (open_ - both_open) * mixed + both_shut * now.c
    chi_ab = (init.weight_var * both_open * slopes_ab + both_shut
              + values.gate_weight_var * both_sloped * (values_ab - 2 * mixed + now.c))
    return covariance, chi_ab


# --- arguments -------------------------------------------------------------------------------------------------------


def check_init(call: str, gate_bias: Values, weight_var: Values, gate_weight_var: Values,
               bias_var: Values = 0.0) -> tuple[np.ndarray, ...]:
    return (check_number(call, "gate_bias", gate_bias, "a number"),
            *variances(call, weight_var, bias_var)[:1],
            check_number(call, "gate_weight_var", gate_weight_var, NON_NEGATIVE),
            variances(call, weight_var, bias_var)[1])
