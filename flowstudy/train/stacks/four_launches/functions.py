"""Activations of a tile of numbers in Triton, and their derivatives; nan stays nan.

A stack may hold nets of several activations.  Which of them it holds is known when the kernel is compiled (PRESENT, the
bits of all); which of these a net has (kind, one bit) is read when the kernel runs.
"""

import triton
import triton.language as tl

NAMES = ("relu", "tanh", "sigmoid", "linear", "gelu", "hard_tanh", "erf")
BITS = {name: 1 << place for place, name in enumerate(NAMES)}
RELU, TANH, SIGMOID, LINEAR, GELU, HARD_TANH, ERF = map(tl.constexpr, BITS.values())
KEEP_INPUT = ("gelu", "erf")  # their derivative cannot be told from their value


@triton.jit
def sigmoid(a):
    return 1.0 / (1.0 + tl.exp(-a))


@triton.jit
def hyperbolic_tangent(a):
    """Cephes' polynomial where |a| < 0.625, the exponential elsewhere."""
    square = a * a
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    large = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(a)) + 1.0)
    return tl.where(tl.abs(a) < 0.625, p * square * a + a, tl.where(a < 0.0, -large, large))


@triton.jit
def normal_share(a):
    """The share of a normal distribution below a."""
    return 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))


@triton.jit
def activated(a, kind, PRESENT: tl.constexpr):
    """f(a), of the same shape."""
    h = a
    if RELU & PRESENT:
        h = tl.where((kind == RELU) & (a < 0.0), 0.0, h)
    if TANH & PRESENT:
        h = tl.where(kind == TANH, hyperbolic_tangent(a), h)
    if SIGMOID & PRESENT:
        h = tl.where(kind == SIGMOID, sigmoid(a), h)
    if GELU & PRESENT:
        h = tl.where(kind == GELU, a * normal_share(a), h)
    if HARD_TANH & PRESENT:
        h = tl.where((kind == HARD_TANH) & (a < -1.0), -1.0, h)
        h = tl.where((kind == HARD_TANH) & (a > 1.0), 1.0, h)
    if ERF & PRESENT:
        h = tl.where(kind == ERF, tl.erf(a), h)
    return h


@triton.jit
def through(g, a, h, kind, PRESENT: tl.constexpr):
    """g f'(a), from f(a) = h where that is enough; the pre-activation a counts for gelu and erf only."""
    d = g
    if RELU & PRESENT:
        d = tl.where((kind == RELU) & (h <= 0.0), 0.0, d)
    if TANH & PRESENT:
        d = tl.where(kind == TANH, g * (1.0 - h * h), d)
    if SIGMOID & PRESENT:
        d = tl.where(kind == SIGMOID, g * h * (1.0 - h), d)
    if GELU & PRESENT:
        slope = normal_share(a) + a * 0.3989422804014327 * tl.exp(-0.5 * a * a)
        d = tl.where(kind == GELU, g * slope, d)
    if HARD_TANH & PRESENT:
        d = tl.where((kind == HARD_TANH) & ((h <= -1.0) | (h >= 1.0)), 0.0, d)
    if ERF & PRESENT:
        d = tl.where(kind == ERF, g * 1.1283791670955126 * tl.exp(-a * a), d)
    return d


@triton.jit
def log_one_plus(r):
    """ln(1 + r) for r >= 0, to the last digits of small r too: 2 atanh(r / (2 + r)) by its series below 0.1."""
    z = r / (2.0 + r)
    square = z * z
    series = ((square * 0.14285714285714285 + 0.2) * square + 0.3333333333333333) * square
    return tl.where(r < 0.1, 2.0 * (series * z + z), tl.log(1.0 + r))
