"""The best cells of a search, for each kind of net."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from flowstudy.arguments import FLAG, NAME, a_whole, check_frame, several, takes
from flowstudy.refusal import RefusalError

from .cells import CELL_FIELDS


def names(call: str, name: str, value: object) -> None:
    """A rule for arguments that are one name or a sequence of names."""
    several(NAME)(call, name, [value] if isinstance(value, str) else value)


TIMES = ("epoch", "step")  # a column of these orders a cell's rows


@takes(frame=check_frame, by=names, of=NAME, largest=FLAG)
def best(frame: pd.DataFrame, by: Sequence[str] = ("net", "depth"), of: str = "loss",
         largest: bool = False) -> pd.DataFrame:
    """The best cell for each combination of the fields `by`; see `top`.

    Returns:
        A row per combination, as `top`'s.

    >>> frame = pd.DataFrame({"cell": ["a", "a", "b"], "depth": 10, "epoch": [0, 1, 1], "loss": [2.3, 0.2, 0.1]})
    >>> best(frame, by=["depth"])["cell"].tolist()
    ['b']
    """
    return top(frame, 1, by, of, largest)


@takes(frame=check_frame, k=a_whole(1), by=names, of=NAME, largest=FLAG)
def top(frame: pd.DataFrame, k: int, by: Sequence[str] = ("net", "depth"), of: str = "loss",
        largest: bool = False) -> pd.DataFrame:
    """The `k` best cells for each combination of the fields `by`, by their last value of `of`.

    Args:
        frame: from `run`, with one value of `of` a cell, or one for each epoch or step, of which the last counts.
        by: fields of the cell.
        of: the column that decides.
        largest: whether a larger value is better, as an accuracy is; else the smallest is best.

    Returns:
        A row per cell: `rank` from 1, the cell's key and fields, and the columns of its last row.  Cells that
        diverged (whose value is not finite) come last, in the plan's order; ties keep the plan's order too.

    Raises:
        ValueError: an unknown column, or several values of `of` at a cell's last time.
    """
    by = [by] if isinstance(by, str) else list(by)
    for column in ("cell", of, *by):
        if column not in frame:
            raise RefusalError(f"top: `frame` must have a column `{column}`, got {', '.join(map(str, frame.columns))}.")
    last = last_rows(frame, of)
    value = last[of].astype(float)
    worth = np.where(np.isfinite(value), -value if largest else value, np.inf)
    ranked = last.iloc[np.argsort(worth, kind="stable")]
    ranked.insert(0, "rank", ranked.groupby(by, dropna=False).cumcount() + 1)
    ranked = ranked[ranked["rank"] <= k]
    return ranked.sort_values([*by, "rank"], kind="stable", ignore_index=True)


def last_rows(frame: pd.DataFrame, of: str) -> pd.DataFrame:
    """Each cell's row at its last time, in the plan's order."""
    times = [name for name in TIMES if name in frame and name not in CELL_FIELDS]
    for name in times:
        frame = frame[frame[name] == frame.groupby("cell", sort=False)[name].transform("max")]
    if frame["cell"].duplicated().any():
        raise RefusalError(f"top: `of` must have one value a cell and {' or '.join(TIMES)}, got several of {of!r}. "
                           "Reduce them first, as by frame.groupby('cell').")
    return frame
