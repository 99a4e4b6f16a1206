"""Signal propagation in wide plain nets: length and correlation maps, their fixed points, phases and depth scales."""

from dataclasses import dataclass

import numpy as np

from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Result, Values, check_number

from .activations import activation_named
from .fixed_points import CRITICAL, fixed_correlation, fixed_length

NON_NEGATIVE = "non-negative and finite"


@dataclass(frozen=True)
class MeanField:
    """The limits of signals in an infinitely wide and deep plain net, each a float or an array of the arguments' shape.

    Attributes:
        q: q*, mean square of the preactivations at which the length map arrives; nan where it keeps every length
            (relu at weight_var 2 without biases).
        c: c*, correlation at which two different inputs arrive: 1 in the ordered phase and on the critical line.
        chi_1: mean squared singular value gained per layer at q*: E||gradient||^2 grows by it per layer back.
        xi_q: layers over which q - q* falls by e.
        xi_c: layers over which c - c* falls by e: what goes further cannot tell two inputs apart; inf where critical.
        phase: "ordered" (chi_1 < 1, gradients vanish), "critical" (within 1e-9 of 1) or "chaotic" (they explode).
    """

    q: Result
    c: Result
    chi_1: Result
    xi_q: Result
    xi_c: Result
    phase: str | np.ndarray

    @property
    def xi_gradient(self) -> Result:
        """Layers over which E||gradient||^2 changes by e, either way; inf where critical."""
        return depth_scale(np.exp(-np.abs(np.log(np.maximum(self.chi_1, 1e-300)))))


def mean_field(activation: str, weight_var: Values, bias_var: Values = 0.0, *, q0: Values = 1.0) -> MeanField:
    """Fixed points, phase and depth scales of a plain net h = W phi(h) + b of infinite width.

    q' = weight_var E phi(h)^2 + bias_var, h ~ N(0, q);   q c' = weight_var E phi(h_a) phi(h_b) + bias_var;
    chi_1 = weight_var E phi'(h)^2, the slope of the correlation map at c = 1.

    The numbers are at rounding level, except that c* below the critical line is known to about 1e-16 / (1 - c*).
    Where q* = 0 two inputs shrink together: xi_c is the scale of their covariance, and their cosine stays.

    Args:
        activation: linear, relu, leaky_relu (slope 0.01), tanh, hard_tanh, erf, gelu (exact form), sigmoid.
        weight_var: variance of a weight times fan_in: 1 for lecun_normal (and glorot_normal of square matrices), 2 for
            he_normal.
        bias_var: variance of a bias. Arrays broadcast.
        q0: length from which q goes to its fixed point; matters for gelu alone, which can have several.

    Returns:
        A MeanField; its fields are in the arguments' common shape.

    Raises:
        ValueError: an unknown activation, a variance that is negative or not finite, or no fixed point: q then grows
            without bound (relu beyond weight_var 2, or at 2 with biases). For finite depths take `plain`.

    Source: Poole et al. 2016 (arXiv:1606.05340); Schoenholz et al. 2017 (arXiv:1611.01232).

    >>> net = mean_field("tanh", weight_var=4.0, bias_var=0.05)
    >>> net.phase, round(net.q, 6), round(net.c, 6), round(net.xi_c, 6)
    ('chaotic', 2.195494, 0.165065, 6.980274)
    """
    call = "mean_field"
    phi = activation_named(call, activation)
    w, b = variances(call, weight_var, bias_var)
    w, b, start = np.broadcast_arrays(w, b, check_number(call, "q0", q0, NON_NEGATIVE))
    q = fixed_length(call, phi, w, b, start)
    chi_1 = w * phi.squared_slope(q)
    c, chi_c = fixed_correlation(phi, w, b, q, np.asarray(chi_1))
    phase = np.select([np.abs(chi_1 - 1) <= CRITICAL, chi_1 < 1], ["critical", "ordered"], "chaotic")
    return MeanField(q=plain_number(q), c=plain_number(c), chi_1=plain_number(chi_1),
                     xi_q=depth_scale(w * phi.mean_square_slope(q)), xi_c=depth_scale(chi_c),
                     phase=phase if phase.ndim else str(phase))


def length_map(activation: str, q: Values, weight_var: Values, bias_var: Values = 0.0) -> Result:
    """One layer: mean square of the next preactivations, weight_var E phi(h)^2 + bias_var, h ~ N(0, q).

    Returns:
        Mean square of the next preactivations, in the arguments' common shape.

    >>> float(length_map("relu", q=3.0, weight_var=2.0))
    3.0
    """
    call = "length_map"
    phi = activation_named(call, activation)
    w, b = variances(call, weight_var, bias_var)
    return plain_number(w * phi.mean_square(check_number(call, "q", q, NON_NEGATIVE)) + b)


def correlation_map(activation: str, c: Values, weight_var: Values, bias_var: Values = 0.0, *,
                    q: Values | None = None) -> Result:
    """One layer: correlation of the next preactivations of two inputs whose preactivations have correlation c.

    Args:
        q: their mean square, the same for both; None is the fixed point q*. Where q is 0 the limit is meant.
    Returns:
        The correlation, -1 to 1, in the arguments' common shape.

    >>> round(float(correlation_map("relu", c=0.0, weight_var=2.0, q=1.0)), 6)   # 1 / pi
    0.31831
    """
    call = "correlation_map"
    phi = activation_named(call, activation)
    w, b = variances(call, weight_var, bias_var)
    c = check_correlation(call, "c", c)
    q = fixed_length(call, phi, w, b, np.ones_like(w)) if q is None else check_number(call, "q", q, NON_NEGATIVE)
    q = np.where(np.isnan(q), 1.0, np.maximum(q, 1e-100))  # any q does; and the limit of small q
    w, b, q, c = np.broadcast_arrays(w, b, q, c)
    with np.errstate(invalid="ignore"):  # neither weights nor biases: nan
        return plain_number((w * phi.pairs(q).covariance(c) + b) / (w * phi.mean_square(q) + b))


# --- shared with the other theory of nets ----------------------------------------------------------------------------


def depth_scale(factor: Values) -> Result:
    """-1 / ln(factor): layers over which factor^layers falls by e; inf from 1 on, 0 at 0."""
    factor = np.asarray(factor, dtype=np.float64)
    lasting = factor >= 1 - CRITICAL
    with np.errstate(divide="ignore"):
        return plain_number(np.where(lasting, np.inf, -1 / np.log(np.where(lasting, 0.5, factor))))


def variances(call: str, weight_var: Values, bias_var: Values) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.broadcast_arrays(check_number(call, "weight_var", weight_var, NON_NEGATIVE),
                                     check_number(call, "bias_var", bias_var, NON_NEGATIVE)))


def check_correlation(call: str, name: str, value: Values) -> np.ndarray:
    array = check_number(call, name, value, "a number")
    if np.any(np.abs(array) > 1):
        raise RefusalError(f"{call}: `{name}` must be between -1 and 1, got {value!r}.")
    return array


def plain_number(value: Result) -> Result:
    array = np.asarray(value, dtype=np.float64)
    return array if array.ndim else float(array)
