"""The walk of two signals and a Jacobian from layer to layer, and the table of their moments."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd


@runtime_checkable
class Signals(Protocol):
    """Two inputs at one layer: ln of their mean square q, mean in units of sqrt(q), cosine; the Jacobian so far."""

    log_q: float
    m: float
    c: float
    chi: float
    log_mean_squared: float
    gradient_correlation: float


L = TypeVar("L", bound=Signals)


def table_of_layers(first: L, step: Callable[[L], L], depth: int,
                    also: Mapping[str, Callable[[L], float]] | None = None) -> pd.DataFrame:
    """A row per layer, 1 being the first behind `first`; the columns that `highway` describes.

    Args:
        step: from one layer to the next.
        also: further columns, before the gradient correlation.
    """
    rows, now = [], first
    for layer in range(1, depth + 1):
        now = step(now)
        with np.errstate(over="ignore"):  # inf, where a signal has grown beyond the range of numbers
            q, mean_squared = np.exp([now.log_q, now.log_mean_squared])
            mean = now.m * np.exp(now.log_q / 2)
        rows.append({"layer": layer, "q": q, "m": mean, "c": now.c, "chi": now.chi, "mean_squared": mean_squared,
                     **{name: of(now) for name, of in (also or {}).items()},
                     "gradient_correlation": now.gradient_correlation})
    return pd.DataFrame(rows)
