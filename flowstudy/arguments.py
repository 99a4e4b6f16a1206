"""Rules for arguments: each raises an error of one line for a value that is not allowed, before any work is done.

A rule is called with the name of the public function, the name of its argument, and the value.  The decorator `takes`
applies rules to the arguments of a function:

>>> @takes(depth=a_whole(1))
... def layers(depth): return list(range(depth))
>>> layers(depth=2)
[0, 1]
>>> layers(depth=-1)
Traceback (most recent call last):
flowstudy.refusal.RefusalError: layers: `depth` must be an integer of at least 1, got -1.
"""

import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from .refusal import RefusalError, RefusalTypeError, did_you_mean

Rule = Callable[[str, str, Any], object]
F = TypeVar("F", bound=Callable[..., Any])

LARGEST = 2**63 - 1    # the largest integer that fits into a tensor or a column of a table (int64)
MOST_LAYERS = 10**7    # the most layers that are computed one by one or built: more take hours, or too much memory
NUMBERS: dict[str, Callable[[float], bool]] = {
    "a finite number": math.isfinite,
    "positive and finite": lambda value: 0 < value < math.inf,
    "at least 0 and finite": lambda value: 0 <= value < math.inf,
    "at least 0": lambda value: value >= 0,
    "a number": lambda value: not math.isnan(value),
}


def takes(**rules: Rule) -> Callable[[F], F]:
    """Decorate a function so that these arguments are checked by their rules before it is called."""
    def with_rules(function: F) -> F:
        signature, call = inspect.signature(function), function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # an argument too many or too few: the call itself raises Python's own message
                return function(*args, **kwargs)
            for name, rule in rules.items():
                if name in given:
                    rule(call, name, given[name])
            return function(*args, **kwargs)

        return checked

    return with_rules


# --- numbers ---------------------------------------------------------------------------------------------------------


def is_whole(value: object) -> bool:
    """Whether the value is an integer, Python's or numpy's; numpy counts timedelta64 as an integer, we do not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def check_whole(call: str, name: str, value: Any, least: int = 0, most: int = LARGEST, way_out: str = "") -> int:
    """Return the value as an int if it is an integer, Python's or numpy's, from `least` to `most`."""
    if not is_whole(value) or not least <= value <= most:
        ends = f"an integer from {least} to {most}" if most < MOST_LAYERS else f"an integer of at least {least}"
        if most >= MOST_LAYERS and is_whole(value) and value > most:
            ends += " and below 2**63" if most == LARGEST else f" and at most {most:,}"
        raise RefusalError(f"{call}: `{name}` must be {ends}, got {in_short(value)}.{way_out}")
    return int(value)


def a_whole(least: int = 0, most: int = LARGEST) -> Rule:
    return lambda call, name, value: check_whole(call, name, value, least, most)


def check_real(call: str, name: str, value: Any, rule: str = "a finite number", way_out: str = "") -> float:
    """Return the value as a float if it is a number for which the rule, a key of `NUMBERS`, is true."""
    number = (is_whole(value) and abs(value) <= LARGEST) or isinstance(value, float | np.floating)
    if not number or not NUMBERS[rule](value):
        raise RefusalError(f"{call}: `{name}` must be {rule}, got {in_short(value)}.{way_out}")
    return float(value)


def a_real(rule: str = "a finite number") -> Rule:
    return lambda call, name, value: check_real(call, name, value, rule)


# --- names and kinds -------------------------------------------------------------------------------------------------


def check_one_of(call: str, name: str, value: object, known: Collection[str], way_out: str = "") -> str:
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise RefusalError(f"{call}: `{name}` must be one of {', '.join(known)}, got {in_short(value)}."
                           f"{hint or way_out}")
    return value


def one_among(known: Collection[str]) -> Rule:
    return lambda call, name, value: check_one_of(call, name, value, known)


def check_kind(call: str, name: str, value: Any, kind: type | tuple[type, ...], words: str, way_out: str = "") -> Any:
    """Return the value if it is an instance of `kind`, which the error calls by `words`, such as "a function"."""
    if not isinstance(value, kind):
        raise RefusalTypeError(f"{call}: `{name}` must be {words}, got {in_short(value)}.{way_out}")
    return value


def instance_of(kind: type | tuple[type, ...], words: str) -> Rule:
    return lambda call, name, value: check_kind(call, name, value, kind, words)


def check_frame(call: str, name: str, value: Any) -> pd.DataFrame:
    return check_kind(call, name, value, pd.DataFrame, "a pandas DataFrame")


def check_function(call: str, name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise RefusalTypeError(f"{call}: `{name}` must be a function, got {in_short(value)}.")
    return value


def check_path(call: str, name: str, value: Any) -> str | os.PathLike[str]:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise RefusalTypeError(f"{call}: `{name}` must be a path, got {in_short(value)}.")
    return value


FLAG = instance_of((bool, np.bool_), "True or False")
NAME = instance_of(str, "a name")
MAPPING = instance_of(Mapping, "a mapping")
ROW = instance_of(pd.Series, "a row of a pandas DataFrame")


def some_mapping(call: str, name: str, value: Any) -> None:
    MAPPING(call, name, value)
    if not value:
        raise RefusalError(f"{call}: `{name}` must hold at least one entry, got none.")


def optional(rule: Rule) -> Rule:
    """A rule that allows None and every value that the given rule allows."""
    return lambda call, name, value: value is None or rule(call, name, value)


def several(rule: Rule, least: int = 1) -> Rule:
    """A rule that allows a sequence, or another iterable with a length, whose entries the given rule allows."""
    def check(call: str, name: str, value: Any) -> None:
        if isinstance(value, str) or not isinstance(value, Iterable) or not hasattr(value, "__len__"):
            raise RefusalTypeError(f"{call}: `{name}` must be a sequence, got {in_short(value)}. For one pass a list "
                                   "of it.")
        if len(value) < least:
            raise RefusalError(f"{call}: `{name}` must hold at least {least}, got {in_short(value)}.")
        for place, one in enumerate(value.tolist() if hasattr(value, "tolist") else value):  # an array, a tensor
            rule(call, f"{name}[{place}]", one)

    return check


def in_short(value: object) -> str:
    """A value as error messages show it: on one line, cut after 200 characters, an array by its shape."""
    text = " ".join(repr(value).split())
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and len(shape):
        return f"{type(value).__name__} of shape {tuple(shape)}"
    return text if len(text) <= 200 else f"{text[:200]}..."
