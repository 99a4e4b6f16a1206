"""What the formulas take: numbers or arrays of them; and one line that says what is wrong with them."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

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
}


def check_integer(call: str, name: str, value: Values, least: int = 1) -> np.ndarray:
    """The value as float64: widths and depths go into formulas that integers would overflow."""
    array = np.asarray(value)
    if not (array.dtype.kind in "iuf" and array.size
            and np.all((array >= least) & (array < np.inf) & (array == np.floor(array)))):
        raise ValueError(f"{call}: `{name}` must be an integer of at least {least}, got {value!r}.")
    return array.astype(np.float64)


def check_number(call: str, name: str, value: Values, rule: str = "positive and finite") -> np.ndarray:
    array = np.asarray(value)
    if not (array.dtype.kind in "iuf" and array.size and np.all(RULES[rule](array.astype(np.float64)))):
        raise ValueError(f"{call}: `{name}` must be {rule}, got {value!r}.")
    return array.astype(np.float64)


def check_choice(call: str, name: str, value: str, known: Collection[str], way_out: str = "") -> str:
    if value not in known:
        raise ValueError(f"{call}: `{name}` must be one of {', '.join(known)}, got {value!r}.{way_out}")
    return value
