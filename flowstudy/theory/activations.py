"""Activations as mean-field theory sees them: values, slopes, and what they average to over Gaussian preactivations."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import erf, expit, ndtr, owens_t

from .checks import Result
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
        value, slope, curvature: phi, phi' and phi''; the curvature of activations with kinks is None.
        mean_square: V = E phi^2.
        mean_square_slope: dV / dq = E[phi'^2 + phi phi''].
        squared_slope: E phi'^2.
        pairs: means over two inputs of the same q.
        kinks: (place, jump of the slope) of each, ascending.
        gain: phi = |h| times a constant on either side of 0, and E phi^2 = gain q; None if not so.
        bounded: phi^2 <= 1, and V is concave: the length map then has one attracting fixed point.
    """

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
    """max(h, leak h): Cho & Saul 2009, arc-cosine kernels of degree 1 and 0."""
    gain = (1 + leak**2) / 2

    def values(q: Result, c: Result) -> Result:
        c = np.clip(c, -1, 1)
        bent = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi
        return q * (leak * c + (1 - leak) ** 2 * bent / 2)

    def slopes(q: Result, c: Result) -> Result:
        bent = 1 - np.arccos(np.clip(c, -1, 1)) / np.pi
        return leak + (1 - leak) ** 2 * bent / 2 + 0 * q

    return Activation(
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
    value=np.tanh, slope=tanh_slope, curvature=tanh_curvature, bounded=True, pairs=TanhPairs,
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
    value=expit, slope=lambda h: expit(h) * expit(-h), bounded=True, pairs=SigmoidPairs,
    curvature=lambda h: tanh_curvature(h / 2) / 8,
    mean_square=lambda q: (1 + TANH.mean_square(q / 4)) / 4,
    mean_square_slope=lambda q: TANH.mean_square_slope(q / 4) / 16,
    squared_slope=lambda q: TANH.squared_slope(q / 4) / 16)

ERF = Activation(  # Williams 1997
    value=erf, slope=lambda h: 2 / np.sqrt(np.pi) * np.exp(-(h**2)), bounded=True,
    curvature=lambda h: -4 / np.sqrt(np.pi) * h * np.exp(-(h**2)),
    mean_square=lambda q: 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)),
    mean_square_slope=lambda q: 4 / np.pi / ((1 + 2 * q) * np.sqrt(1 + 4 * q)),
    squared_slope=lambda q: 4 / np.pi / np.sqrt(1 + 4 * q),
    pairs=closed(lambda q, c: 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q)),
                 lambda q, c: 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)))


def kink_distance(q: Result) -> Result:
    """1 / sqrt(q), in standard deviations; far enough where q is 0."""
    return 1 / np.sqrt(np.maximum(q, 1e-4))  # beyond 38 the normal density is 0 in float64


def both_above(a: Result, c: Result) -> Result:
    """P(u > a, v > a) of standard normals with correlation c: Owen 1956."""
    c = np.clip(c, -1, 1)
    with np.errstate(divide="ignore"):
        return ndtr(-a) - 2 * owens_t(a, np.sqrt((1 - c) / (1 + c)))


def both_excesses(a: Result, c: Result) -> Result:
    """E max(u - a, 0) max(v - a, 0) of standard normals with correlation c: its second derivative is `both_above`."""
    c = np.clip(c, -1, 1)
    root = np.sqrt((1 - c) * (1 + c))
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = ndtr(-a * np.sqrt((1 - c) / (1 + c)))
        joint = np.where(c > -1, np.exp(-(a**2) / (1 + c)), 0.0) / (2 * np.pi)  # (1 - c^2) times the joint density
    return (c + a**2) * both_above(a, c) - 2 * a * density(a) * tail + root * joint


def hard_tanh_values(q: Result, c: Result) -> Result:
    """clip(h) = h - (h - 1)+ + (-h - 1)+, multiplied out."""
    a = kink_distance(q)
    return q * (c - 4 * c * ndtr(-a) + 2 * both_excesses(a, c) - 2 * both_excesses(a, -c))


def hard_tanh_slopes(q: Result, c: Result) -> Result:
    a = kink_distance(q)
    return 1 - 4 * ndtr(-a) + 2 * both_above(a, c) + 2 * both_above(a, -c)


HARD_TANH = Activation(
    value=lambda h: np.clip(h, -1, 1), slope=lambda h: (np.abs(h) < 1).astype(np.float64), bounded=True,
    kinks=((-1.0, 1.0), (1.0, -1.0)), pairs=closed(hard_tanh_values, hard_tanh_slopes),
    mean_square=lambda q: q * HARD_TANH.squared_slope(q) + 2 * (
        ndtr(-kink_distance(q)) - q * kink_distance(q) * density(kink_distance(q))),
    mean_square_slope=lambda q: HARD_TANH.squared_slope(q) - 2 * density(kink_distance(q)) * kink_distance(q),
    squared_slope=lambda q: erf(kink_distance(q) / np.sqrt(2)))


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
    value=lambda h: h * ndtr(h), slope=gelu_slope, curvature=lambda h: (2 - h**2) * density(h),
    mean_square=lambda q: gelu_values(q, 1.0), squared_slope=lambda q: gelu_slopes(q, 1.0),
    mean_square_slope=lambda q: gaussian_mean(
        lambda h: gelu_slope(h) ** 2 + h * ndtr(h) * (2 - h**2) * density(h), q),
    pairs=closed(gelu_values, gelu_slopes))

ACTIVATIONS: dict[str, Activation] = {
    "linear": rectifier(1.0), "relu": rectifier(0.0), "leaky_relu": rectifier(LEAK), "tanh": TANH,
    "hard_tanh": HARD_TANH, "erf": ERF, "gelu": GELU, "sigmoid": SIGMOID,
}


def activation_named(call: str, name: str) -> Activation:
    if name not in ACTIVATIONS:
        near = difflib.get_close_matches(str(name), ACTIVATIONS, 1)
        raise ValueError(f"{call}: `activation` must be one of {', '.join(ACTIVATIONS)}, got {name!r}."
                         + (f" Did you mean {near[0]!r}?" if near else ""))
    return ACTIVATIONS[name]
