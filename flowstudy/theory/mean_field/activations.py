"""Activations for mean-field theory: their values and slopes, and means of these over Gaussian preactivations."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import erf, expit, ndtr, owens_t

from flowstudy.arguments import check_one_of
from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Result

from .gaussian import Pairs, TanhPairs, gaussian_mean

Function = Callable[[Result], Result]
LEAK = 0.01  # slope of leaky_relu below 0, torch's default


@dataclass(frozen=True)
class ClosedPairs:
    """Means over two inputs in closed form, as functions of (q, c)."""

    q: Result
    of_values: Callable[[Result, Result], Result]
    of_slopes: Callable[[Result, Result], Result]

    def covariance(self, c: Result) -> Result:
        return self.of_values(self.q, c)

    def slope_covariance(self, c: Result) -> Result:
        return self.of_slopes(self.q, c)


@dataclass(frozen=True)
class Activation:
    """phi, and its means over h ~ N(0, q) as functions of q.

    Attributes:
        name: for messages.
        value, slope, curvature: phi, phi' and phi''; the curvature of activations with kinks is None.
        mean_square: V = E phi^2.
        mean_square_slope: dV / dq = E[phi'^2 + phi phi''].
        squared_slope: E phi'^2.
        pairs: means over two inputs of the same q.
        kinks: (place, jump of the slope) of each, ascending.
        gain: phi = |h| times a constant on either side of 0, and E phi^2 = gain q; None if not so.
        bounded: phi^2 <= 1, and V is concave: the length map then has one attracting fixed point.
    """

    name: str
    value: Function
    slope: Function
    mean_square: Function
    mean_square_slope: Function
    squared_slope: Function
    pairs: Callable[[Result], Pairs]
    curvature: Function | None = None
    kinks: tuple[tuple[float, float], ...] = ()
    gain: float | None = None
    bounded: bool = False

    @property
    def kink_places(self) -> tuple[float, ...]:
        return tuple(place for place, _ in self.kinks)

    def mean(self, function: Function, q: Result) -> Result:
        """E f(h), f made of phi and its slope."""
        return gaussian_mean(function, q, self.kink_places)


def closed(of_values: Callable, of_slopes: Callable) -> Callable[[Result], Pairs]:
    return lambda q: ClosedPairs(np.asarray(q, dtype=np.float64), of_values, of_slopes)


def density(h: Result) -> Result:
    return np.exp(-(h**2) / 2) / np.sqrt(2 * np.pi)


# --- piecewise linear through 0: linear, relu, leaky_relu ------------------------------------------------------------


def rectifier(leak: float) -> Activation:
    """h above 0, leak h below: Cho & Saul 2009, arc-cosine kernels of degree 1 and 0."""
    gain = (1 + leak**2) / 2

    def values(q: Result, c: Result) -> Result:
        c = np.clip(c, -1, 1)
        bent = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi
        return q * (leak * c + (1 - leak) ** 2 * bent / 2)

    def slopes(q: Result, c: Result) -> Result:
        bent = 1 - np.arccos(np.clip(c, -1, 1)) / np.pi
        return leak + (1 - leak) ** 2 * bent / 2 + 0 * q

    return Activation(
        name={0.0: "relu", 1.0: "linear"}.get(leak, f"leaky_relu of slope {leak:g}"),
        value=lambda h: np.where(h > 0, h, leak * h), slope=lambda h: np.where(h > 0, 1.0, leak),
        mean_square=lambda q: gain * q, mean_square_slope=lambda q: np.full_like(q, gain),
        squared_slope=lambda q: np.full_like(q, gain), pairs=closed(values, slopes),
        kinks=() if leak == 1 else ((0.0, 1 - leak),), gain=gain)


# --- saturating ------------------------------------------------------------------------------------------------------


def tanh_slope(h: Result) -> Result:
    return 1 / np.cosh(np.clip(h, -350, 350)) ** 2


def tanh_curvature(h: Result) -> Result:
    return -2 * np.tanh(h) * tanh_slope(h)


TANH = Activation(
    name="tanh", value=np.tanh, slope=tanh_slope, curvature=tanh_curvature, bounded=True, pairs=TanhPairs,
    mean_square=lambda q: gaussian_mean(lambda h: np.tanh(h) ** 2, q),
    mean_square_slope=lambda q: gaussian_mean(lambda h: tanh_slope(h) * (1 - 3 * np.tanh(h) ** 2), q),
    squared_slope=lambda q: gaussian_mean(lambda h: tanh_slope(h) ** 2, q))


class SigmoidPairs:
    """sigmoid(h) = (1 + tanh(h / 2)) / 2."""

    def __init__(self, q: Result):
        self.halved = TanhPairs(np.asarray(q) / 4)

    def covariance(self, c: Result) -> Result:
        return (1 + self.halved.covariance(c)) / 4

    def slope_covariance(self, c: Result) -> Result:
        return self.halved.slope_covariance(c) / 16


SIGMOID = Activation(
    name="sigmoid", value=expit, slope=lambda h: expit(h) * expit(-h), bounded=True, pairs=SigmoidPairs,
    curvature=lambda h: tanh_curvature(h / 2) / 8,
    mean_square=lambda q: (1 + TANH.mean_square(q / 4)) / 4,
    mean_square_slope=lambda q: TANH.mean_square_slope(q / 4) / 16,
    squared_slope=lambda q: TANH.squared_slope(q / 4) / 16)

ERF = Activation(  # Williams 1997
    name="erf", value=erf, slope=lambda h: 2 / np.sqrt(np.pi) * np.exp(-(h**2)), bounded=True,
    curvature=lambda h: -4 / np.sqrt(np.pi) * h * np.exp(-(h**2)),
    mean_square=lambda q: 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)),
    mean_square_slope=lambda q: 4 / np.pi / ((1 + 2 * q) * np.sqrt(1 + 4 * q)),
    squared_slope=lambda q: 4 / np.pi / np.sqrt(1 + 4 * q),
    pairs=closed(lambda q, c: 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q)),
                 lambda q, c: 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)))


# --- hard tanh -------------------------------------------------------------------------------------------------------


def hard_tanh(low: float = -1.0, high: float = 1.0) -> Activation:
    """clip(h, low, high) = h - (h - high)+ + (low - h)+, whose means are those of a normal variable's excesses.

    Args:
        low, high: the range; it must hold 0. nn.ReLU6 is that of 0 and 6.
    """
    if not (-np.inf < low <= 0 <= high < np.inf and low < high):
        raise RefusalError(f"hard_tanh: `low` and `high` must be finite numbers around 0, got {low!r} and {high!r}.")

    def ends(q: Result) -> tuple[Result, Result]:
        return kink_distance(high, q), kink_distance(-low, q)

    def squared_slope(q: Result) -> Result:
        return sum(erf(a / np.sqrt(2)) for a in ends(q)) / 2

    def at_ends(q: Result) -> Result:
        return sum(a * density(a) for a in ends(q))

    def mean_square(q: Result) -> Result:
        a, b = ends(q)
        return q * (squared_slope(q) - at_ends(q)) + high**2 * ndtr(-a) + low**2 * ndtr(-b)

    def values(q: Result, c: Result) -> Result:
        a, b = ends(q)
        return q * (c - 2 * c * (ndtr(-a) + ndtr(-b)) + both_excesses(a, a, c) + both_excesses(b, b, c)
                    - 2 * both_excesses(a, b, -c))

    def slopes(q: Result, c: Result) -> Result:
        a, b = ends(q)
        return (1 - 2 * (ndtr(-a) + ndtr(-b)) + both_above(a, a, c) + both_above(b, b, c) + 2 * both_above(a, b, -c))

    return Activation(
        name=f"hard_tanh of range [{low:g}, {high:g}]", value=lambda h: np.clip(h, low, high),
        slope=lambda h: ((low < h) & (h < high)).astype(np.float64), kinks=((low, 1.0), (high, -1.0)),
        pairs=closed(values, slopes), mean_square=mean_square, squared_slope=squared_slope,
        mean_square_slope=lambda q: squared_slope(q) - at_ends(q))


def kink_distance(place: float, q: Result) -> Result:
    """Distance of a kink from 0 in standard deviations, place / sqrt(q), bounded where q is near 0."""
    if place == 0:
        return np.zeros_like(q, dtype=np.float64)
    return place / np.sqrt(np.maximum(q, 1e-4 * place**2))  # beyond 38 the normal density is 0 in float64


def both_above(a: Result, b: Result, c: Result) -> Result:
    """P(u > a, v > b) of standard normals with correlation c, for a and b not negative: Owen 1956."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_a = np.where(a == b, half_angle(c), rest(a, b, c) / a)
        of_b = np.where(a == b, half_angle(c), rest(b, a, c) / b)
    return (ndtr(-a) + ndtr(-b)) / 2 - owens_t(a, of_a) - owens_t(b, of_b)


def both_excesses(a: Result, b: Result, c: Result) -> Result:
    """E max(u - a, 0) max(v - b, 0) of standard normals with correlation c: its second derivative is `both_above`."""
    c = np.clip(c, -1, 1)
    root = np.sqrt((1 - c) * (1 + c))
    with np.errstate(divide="ignore", invalid="ignore"):  # (1 - c^2) times the joint density is root times this
        joint = np.where(root > 0, np.exp(-(a**2 + rest(a, b, c) ** 2) / 2), 0.0) / (2 * np.pi)
    return ((c + a * b) * both_above(a, b, c) - b * density(a) * ndtr(-rest(a, b, c))
            - a * density(b) * ndtr(-rest(b, a, c)) + root * joint)


def half_angle(c: Result) -> Result:
    """tan(acos(c) / 2)."""
    c = np.clip(c, -1, 1)
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - c) / (1 + c))


def rest(a: Result, b: Result, c: Result) -> Result:
    """(b - c a) / sqrt(1 - c^2): where v = b lies given u = a, in standard deviations of what is left of v."""
    c = np.clip(c, -1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(a == b, a * half_angle(c), (b - c * a) / np.sqrt((1 - c) * (1 + c)))
    return np.where(np.isnan(value), 0.0, value)  # 0 times infinity: both are 0, and opposite


HARD_TANH = replace(hard_tanh(), name="hard_tanh", bounded=True)


# --- gelu ------------------------------------------------------------------------------------------------------------


def gelu_values(q: Result, c: Result) -> Result:
    """E u v Phi(u) Phi(v), by Stein's lemma applied to u and to v."""
    spread = np.sqrt((1 + q) ** 2 - (q * c) ** 2)
    both_live = 0.25 + np.arcsin(q * c / (1 + q)) / (2 * np.pi)
    return q * c * both_live + q**2 * (1 + c**2 * (1 - q) / (1 + q)) / (2 * np.pi * spread)


def gelu_slopes(q: Result, c: Result) -> Result:
    """The derivative of `gelu_values` in q c (Price)."""
    square = (1 + q) ** 2 - (q * c) ** 2
    mixed = q * c * (1 + 2 * (1 - q) / (1 + q) + q**2 / square * (1 + c**2 * (1 - q) / (1 + q)))
    return 0.25 + np.arcsin(q * c / (1 + q)) / (2 * np.pi) + mixed / (2 * np.pi * np.sqrt(square))


def gelu_slope(h: Result) -> Result:
    return ndtr(h) + h * density(h)


GELU = Activation(
    name="gelu", value=lambda h: h * ndtr(h), slope=gelu_slope, curvature=lambda h: (2 - h**2) * density(h),
    mean_square=lambda q: gelu_values(q, 1.0), squared_slope=lambda q: gelu_slopes(q, 1.0),
    mean_square_slope=lambda q: gaussian_mean(
        lambda h: gelu_slope(h) ** 2 + h * ndtr(h) * (2 - h**2) * density(h), q),
    pairs=closed(gelu_values, gelu_slopes))

ACTIVATIONS: dict[str, Activation] = {
    "linear": rectifier(1.0), "relu": rectifier(0.0), "leaky_relu": rectifier(LEAK), "tanh": TANH,
    "hard_tanh": HARD_TANH, "erf": ERF, "gelu": GELU, "sigmoid": SIGMOID,
}


def activation_named(call: str, name: str | Activation) -> Activation:
    if isinstance(name, Activation):
        return name
    return ACTIVATIONS[check_one_of(call, "activation", name, ACTIVATIONS)]
