"""Checks of the formulas' arguments, numbers or arrays, which raise an error of one line."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowstudy.arguments import MOST_LAYERS, check_one_of, in_short
from flowstudy.refusal import RefusalError

# Numbers, arrays, or (nested) sequences of numbers; arrays broadcast against each other.
Values = int | float | np.number | np.ndarray | Sequence[Any]
Result = float | np.floating | np.ndarray  # float64, of the arguments' common shape


class Moments(NamedTuple):
    """Mean and variance of a random quantity."""

    mean: Result
    variance: Result


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "positive and finite": lambda v: (v > 0) & (v < np.inf),
    "non-negative and finite": lambda v: (v >= 0) & (v < np.inf),
    "between 0 and 1": lambda v: (v >= 0) & (v <= 1),
    "a number": lambda v: ~np.isnan(v),
    "numbers": lambda v: np.ones(v.shape, bool),
}


def check_integer(call: str, name: str, value: Values, least: int = 1) -> np.ndarray:
    """Return an integer argument as float64, since int64 would overflow in the formulas for widths and depths."""
    array = np.asarray(value)
    if not (array.dtype.kind in "iuf" and array.size
            and np.all((array >= least) & (array < np.inf) & (array == np.floor(array)))):
        raise RefusalError(f"{call}: `{name}` must be an integer of at least {least}, got {value!r}.")
    return array.astype(np.float64)


def check_number(call: str, name: str, value: Values, rule: str = "positive and finite") -> np.ndarray:
    array = np.asarray(value)
    if not (array.dtype.kind in "iuf" and array.size and np.all(RULES[rule](array.astype(np.float64)))):
        raise RefusalError(f"{call}: `{name}` must be {rule}, got {value!r}.")
    return array.astype(np.float64)


def depth_to_walk(call: str, depth: Values) -> int:
    """Check a depth whose layers are computed one by one, at most `MOST_LAYERS`, and return it as an int."""
    if np.ndim(depth):
        raise RefusalError(f"{call}: `depth` must be one number, got {in_short(depth)}. Call it once per net.")
    if check_integer(call, "depth", depth) > MOST_LAYERS:
        raise RefusalError(f"{call}: `depth` must be at most {MOST_LAYERS:,}, layers being walked one by one, got "
                           f"{in_short(depth)}.")
    return int(np.asarray(depth))


def check_choice(call: str, name: str, value: str, known: Collection[str], way_out: str = "") -> str:
    return check_one_of(call, name, value, known, way_out)
