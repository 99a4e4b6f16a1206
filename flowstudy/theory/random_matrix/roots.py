"""Roots of rising functions, many at once."""

from collections.abc import Callable

import numpy as np

from flowstudy.theory.checks import Result

HALVINGS = 64  # of a bracket a few hundred wide: to the last bit of a float64


def rising_root(function: Callable[[Result], Result], low: float, high: float,
                shape: tuple[int, ...]) -> Result:
    """The root of an increasing elementwise function of arrays of `shape`; an end of the bracket where it has none."""
    lower, upper = np.full(shape, float(low)), np.full(shape, float(high))
    for _ in range(HALVINGS):
        middle = (lower + upper) / 2
        below = function(middle) < 0
        lower, upper = np.where(below, middle, lower), np.where(below, upper, middle)
    return upper
