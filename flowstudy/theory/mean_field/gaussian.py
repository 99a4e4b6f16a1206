"""Means over Gaussian preactivations, of one and of two inputs, by quadratures that converge exponentially."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np

from flowstudy.theory.checks import Result

NODES = 129   # nodes of the trapezoidal rule, enough for an error at rounding level for variances up to 1e4
PIECE = 64    # Gauss-Legendre nodes between two kinks
REACH = 12.0  # standard deviations; beyond is less than 1e-32
SERIES_REACH, SERIES_STEP = 13.0, 0.05
STEEPEST = 4  # the most halvings of the step, which bounds the memory
TERMS = (128, 256, 512, 1024, 2048)


class Pairs(Protocol):
    """Means over two inputs whose preactivations have variance q and correlation c."""

    def covariance(self, c: Result) -> Result:
        """E phi(u_a) phi(u_b)."""

    def slope_covariance(self, c: Result) -> Result:
        """E phi'(u_a) phi'(u_b)."""


def gaussian_nodes(var: Result, kinks: Sequence[float] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Nodes h (..., node) and weights that sum to 1, for means over h ~ N(0, var), var (...,).

    For smooth functions the trapezoidal rule in w, h = s sinh(w), s = min(1, standard deviation): its error falls
    exponentially in the number of nodes even where tanh looks like a step.  (Gauss-Hermite nodes are too far apart:
    tanh has poles at distance pi / 2.)  Functions with kinks take Gauss-Legendre nodes between them.
    """
    std = np.sqrt(np.asarray(var, dtype=np.float64))[..., None]
    if kinks:
        z, weight = between_kinks(std, kinks)
    else:
        scale = 1 / np.maximum(1.0, std)
        w = np.arcsinh(REACH / scale) * np.linspace(-1, 1, NODES)
        z = scale * np.sinh(w)
        weight = np.cosh(w)
    weight = weight * np.exp(-(z**2) / 2)
    return std * z, weight / weight.sum(-1, keepdims=True)


def between_kinks(std: np.ndarray, kinks: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    at, weight = legendre_nodes()
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = [np.clip(np.where(kink == 0, 0.0, kink / std), -REACH, REACH) for kink in kinks]
    ends = [np.full_like(std, -REACH), *inner, np.full_like(std, REACH)]
    pieces = [((low + high) / 2 + (high - low) / 2 * at, (high - low) / 2 * weight)
              for low, high in pairwise(ends)]
    return tuple(np.concatenate(part, -1) for part in zip(*pieces, strict=True))


@lru_cache(maxsize=1)
def legendre_nodes() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(PIECE)


def gaussian_mean(function: Callable[[Result], Result], var: Result, kinks: Sequence[float] = ()) -> Result:
    """E f(h), h ~ N(0, var), elementwise in `var`; `kinks` are ascending places where f is not smooth."""
    h, weight = gaussian_nodes(var, kinks)
    return (weight * function(h)).sum(-1)


# --- two inputs: Mehler's series -------------------------------------------------------------------------------------


def series_size(std: float, pole: float) -> tuple[int, int]:
    """Terms, and halvings of the step, at which E f(u_a) f(u_b) is right at any correlation.

    With poles at distance d = pole / std in units of z the k-th term is about exp(-2 d sqrt(2 k)), here 1e-14 (k up
    to 2048: right up to q = 40 at any c, beyond that where c^2048 is small).  The step resolves the k-th
    Hermite function's waves, of wavenumber sqrt(k), and the poles up to q = 1e4; what is steeper counts as a step
    function smeared out over a step of 0.003, and is known to about that relative to its slope.
    """
    wanted = 64 + 140 * (std / pole) ** 2
    terms = next((n for n in TERMS if n >= wanted), TERMS[-1])
    finest = 2 * np.pi / (np.sqrt(terms) + 37 * std / pole)
    halvings = int(np.clip(np.ceil(np.log2(SERIES_STEP / finest)), 0, STEEPEST))
    return (terms if halvings < STEEPEST else min(terms, 1024)), halvings


@lru_cache(maxsize=8)
def hermite_table(terms: int, halvings: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z (node,) and a table (term, node): f(z) @ table.T = E f(z) h_k(z), h_k orthonormal Hermite polynomials."""
    step = SERIES_STEP / 2**halvings
    z = step * np.arange(-round(SERIES_REACH / step), round(SERIES_REACH / step) + 1)
    root_weight = np.exp(-(z**2) / 4) / (2 * np.pi) ** 0.25  # half of it goes into h_k, which alone would overflow
    table = np.empty((terms, len(z)))
    table[0], table[1] = root_weight, z * root_weight
    for k in range(1, terms - 1):
        table[k + 1] = (z * table[k] - np.sqrt(k) * table[k - 1]) / np.sqrt(k + 1)
    return z, table * root_weight * step


@lru_cache(maxsize=8)
def odd_hermite_table(terms: int, halvings: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that odd functions need, on z > 0: a quarter of the whole table, and of its time."""
    step = SERIES_STEP / 2**halvings
    z = step * np.arange(1, round(SERIES_REACH / step) + 1)
    root_weight = np.exp(-(z**2) / 4) / (2 * np.pi) ** 0.25
    rows = np.empty((terms // 2, len(z)))
    before, row = root_weight, z * root_weight
    for k in range(1, terms):
        if k % 2:
            rows[k // 2] = row
        before, row = row, (z * row - np.sqrt(k) * before) / np.sqrt(k + 1)
    rows *= 2 * root_weight * step
    return z, rows


def power_series(coefficients: np.ndarray, c: Result) -> Result:
    """sum_k coefficients[k] c^k, coefficients (term, ...): by Horner's rule, or for one c by a product."""
    if np.ndim(c) == 0:
        return np.asarray(c) ** np.arange(len(coefficients)) @ coefficients
    total = np.zeros_like(c * coefficients[0])
    for coefficient in coefficients[::-1]:
        total = total * c + coefficient
    return total


class TanhPairs:
    """Mehler: E f(u_a) f(u_b) = sum_k a_k^2 c^k, a_k = E f(sqrt(q) z) h_k(z); tanh has odd terms only.

    Price: the slopes' covariance is its derivative in q c.  In units of sqrt(q), so that small q lose no digits.
    """

    def __init__(self, q: Result):
        self.q = np.asarray(q, dtype=np.float64)
        std = np.sqrt(self.q)[..., None]
        z, table = odd_hermite_table(*series_size(float(std.max()), np.pi / 2))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(std > 0, np.tanh(std * z) / std, z)
        self.squares = np.moveaxis(values @ table.T, -1, 0) ** 2  # (term, ...)
        self.odd = np.arange(1, 2 * len(self.squares), 2).reshape(-1, *[1] * self.q.ndim)

    def covariance(self, c: Result) -> Result:
        return self.q * c * power_series(self.squares, c**2)

    def slope_covariance(self, c: Result) -> Result:
        return power_series(self.odd * self.squares, c**2)
