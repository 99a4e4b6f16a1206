"""The critical line, where gradients neither vanish nor explode, and the power laws that hold on it."""

from typing import NamedTuple

import numpy as np

from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Result, Values, check_number

from .activations import Activation, activation_named
from .fixed_points import CRITICAL, bracketed_root
from .maps import NON_NEGATIVE, plain_number


class CriticalPoint(NamedTuple):
    """A point of the critical line: where chi_1 = 1 at a fixed point of the length map."""

    weight_var: Result
    q: Result


class PowerLaw(NamedTuple):
    """1 - c_l -> coefficient / l^power, c_l of the preactivations: how slowly two inputs merge on the critical line."""

    coefficient: Result
    power: int


def critical_weight_var(activation: str | Activation, bias_var: Values = 0.0) -> Result:
    """The weight variance (times fan_in) at which chi_1 = 1 for a given bias variance.

    weight_var = 1 / E phi'(h)^2 and bias_var = q - weight_var E phi(h)^2, h ~ N(0, q): one q for each bias_var.
    By name, or with a slope or a range of its own: `rectifier` and `hard_tanh` in `theory.mean_field.activations`.
    gelu's q attracts only from bias_var 0.17293 on; below, the length leaves it, and `mean_field` finds another phase.

    Returns:
        The variance times the fan-in, dimensionless, in the shape of `bias_var`.

    Raises:
        ValueError: relu, leaky_relu and linear with biases: their only critical point is at bias_var 0.

    Source: Poole et al. 2016; Schoenholz et al. 2017; Hayou et al. 2019 (arXiv:1902.06853).

    >>> round(critical_weight_var("tanh", bias_var=0.05), 12)
    1.760954639607
    """
    return plain_number(critical_point("critical_weight_var", activation, bias_var).weight_var)


def edge_of_chaos(activation: str, bias_var: Values = 0.0) -> PowerLaw:
    """How two inputs' correlation goes to 1 with depth l on the critical line.

    Smooth activations: 1 - c_l -> beta / l, beta = 2 E phi'^2 / (q E phi''^2).  Activations with kinks: 9 / (s l)^2,
    s = weight_var sqrt(q / pi) sum of (jump of the slope)^2 times the density of h at the kink; relu 9 pi^2 / (2 l^2).
    The coefficient is inf where the correlation stays as it is: linear nets, and q* = 0.

    Returns:
        A PowerLaw: `power` and `coefficient` of 1 - c_l = coefficient / l^power, l the number of layers.

    Source: Hayou et al. 2019 (arXiv:1902.06853); the sum over kinks is the same expansion for several of them.

    >>> law = edge_of_chaos("relu")
    >>> law.power, round(law.coefficient, 4)
    (2, 44.4132)
    """
    call = "edge_of_chaos"
    phi = activation_named(call, activation)
    weight_var, q = critical_point(call, activation, bias_var)
    with np.errstate(divide="ignore"):
        if phi.curvature is None:
            return PowerLaw(plain_number(9 / (weight_var * kink_loss(phi, q)) ** 2), 2)
        bent = q * phi.mean(lambda h: phi.curvature(h) ** 2, q)
        return PowerLaw(plain_number(2 * phi.squared_slope(q) / bent), 1)


def kink_loss(phi: Activation, q: Result) -> Result:
    """J of E phi'(u_a) phi'(u_b) = E phi'^2 - J sqrt(1 - c) near c = 1: kinks that lie between u_a and u_b."""
    if phi.gain is not None:  # a kink at 0: the same at every length
        q = np.ones_like(q)
    with np.errstate(divide="ignore"):
        heights = [jump**2 * np.exp(-np.divide(place**2, 2 * q)) for place, jump in phi.kinks]
    return np.sqrt(1 / (2 * np.pi)) * sum(heights, np.zeros_like(q)) / np.sqrt(np.pi)


def critical_point(call: str, activation: str | Activation, bias_var: Values) -> CriticalPoint:
    phi = activation_named(call, activation)
    bias_var = check_number(call, "bias_var", bias_var, NON_NEGATIVE)
    if phi.gain is not None:
        if np.any(bias_var > 0):
            raise RefusalError(f"{call}: `bias_var` must be 0 for {phi.name}, got {bias_var.max():.6g}. Its only "
                               f"critical point is weight_var {1 / phi.gain:.6g} without biases.")
        return CriticalPoint(np.full_like(bias_var, 1 / phi.gain), np.full_like(bias_var, np.nan))
    q = critical_length(phi, bias_var)
    return CriticalPoint(1 / phi.squared_slope(q), q)


def critical_length(phi: Activation, bias_var: np.ndarray) -> np.ndarray:
    """The q at which the critical line has this bias variance."""
    def excess(q: Result) -> Result:
        return q - phi.mean_square(q) / phi.squared_slope(q) - bias_var

    low, high = np.zeros_like(bias_var), np.full_like(bias_var, 1.0)
    while np.any(excess(high) <= 0):
        high = np.where(excess(high) <= 0, 4 * high, high)
    at_zero = (bias_var == 0) & (phi.mean_square(low) <= CRITICAL)
    return np.where(at_zero, 0.0, bracketed_root(excess, low, high, np.minimum(excess(low), -1e-300), excess(high)))
