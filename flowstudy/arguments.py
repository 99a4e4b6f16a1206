"""What arguments may be: a check for each kind, which refuses any other value in one line before anything is done."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .refusal import RefusalError, RefusalTypeError, did_you_mean

LARGEST = 2**63 - 1  # integer that a tensor and a column of a table hold
RULES: dict[str, Callable[[float], bool]] = {
    "a finite number": math.isfinite,
    "positive and finite": lambda value: 0 < value < math.inf,
    "at least 0 and finite": lambda value: 0 <= value < math.inf,
    "a number": lambda value: not math.isnan(value),
    "between 0 and 1": lambda value: 0 <= value <= 1,
}


def is_whole(value: object) -> bool:
    """An integer; numpy counts spans of time among its own."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def check_whole(call: str, name: str, value: object, least: int = 0, most: int = LARGEST, way_out: str = "") -> int:
    """An integer from `least` to `most`, Python's or numpy's."""
    if not is_whole(value) or not least <= value <= most:
        ends = f"an integer of at least {least}" if most == LARGEST else f"an integer from {least} to {most}"
        largest = " and below 2**63" if is_whole(value) and value > LARGEST == most else ""
        raise RefusalError(f"{call}: `{name}` must be {ends}{largest}, got {in_short(value)}.{way_out}")
    return int(value)


def check_real(call: str, name: str, value: object, rule: str = "a finite number") -> float:
    """A number that keeps one of `RULES`."""
    number = (is_whole(value) and abs(value) <= LARGEST) or isinstance(value, float | np.floating)
    if not number or not RULES[rule](value):
        raise RefusalError(f"{call}: `{name}` must be {rule}, got {in_short(value)}.")
    return float(value)


def check_one_of(call: str, name: str, value: object, known: Iterable[str], way_out: str = "") -> str:
    known = list(known)
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known) or way_out
        raise RefusalError(f"{call}: `{name}` must be one of {', '.join(known)}, got {in_short(value)}.{hint}")
    return value


def check_kind(call: str, name: str, value: Any, kind: type | tuple[type, ...], words: str, way_out: str = "") -> Any:
    """An instance; `words` say of what, with an article."""
    if not isinstance(value, kind):
        raise RefusalTypeError(f"{call}: `{name}` must be {words}, got {in_short(value)}.{way_out}")
    return value


def check_frame(call: str, name: str, value: object, columns: Sequence[str] = (), way_out: str = "") -> pd.DataFrame:
    """A pandas DataFrame with at least one row and these columns."""
    check_kind(call, name, value, pd.DataFrame, "a pandas DataFrame", way_out)
    missing = [column for column in columns if column not in value.columns]
    if missing or value.empty:
        lacks = f"without {', '.join(missing)}" if missing else "without rows"
        raise RefusalError(f"{call}: `{name}` must be a frame with the columns {', '.join(columns) or 'that it names'} "
                           f"and at least one row, got one {lacks}.{way_out}")
    return value


def in_short(value: object) -> str:
    """A value in an error: short, on one line."""
    text = " ".join(repr(value).split())
    if len(text) <= 80:
        return text
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else
                                        f" {text[:60]}...")
