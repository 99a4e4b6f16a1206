"""One number for each net from its measured rows: the slope of its error signal, or its condition number."""

import math

import numpy as np
import pandas as pd

from flowstudy.arguments import check_frame, takes

from .gradients import KIND, z_of


@takes(flow=check_frame)
def backward_slopes(flow: pd.DataFrame) -> pd.DataFrame:
    """The least-squares slope of ln ||error signal||^2 over the layers, towards the input, of fully connected nets.

    `GradientFlow.slope` is the same for a single model, and also allows for pooling.

    Returns:
        A row per net: the cell's columns, and `slope` [per layer].
    """
    norm = flow["log10_error_signal_norm"]
    log_square = 2 * math.log(10) * norm.where(np.isfinite(norm))
    rows = flow.assign(y=log_square, x=flow["layer"].where(log_square.notna()).astype(float))
    x, y = (rows[v] - rows.groupby("cell")[v].transform("mean") for v in ("x", "y"))
    sums = pd.DataFrame({"cell": rows["cell"], "xy": x * y, "xx": x * x}).groupby("cell", sort=False).sum()
    return flow.drop_duplicates("cell").assign(slope=lambda nets: nets["cell"].map(-sums["xy"] / sums["xx"]))


def log_conditions(spectra: pd.DataFrame, columns: tuple[str, ...] = ("log_singular_value",)) -> pd.DataFrame:
    """ln of the largest singular value over the smallest that is not 0, by cell and sample, for each of the columns."""
    finite = spectra[np.isfinite(spectra["log_singular_value"])]
    return finite.groupby(["cell", "sample"], sort=False)[list(columns)].agg(np.ptp)


def with_predicted_conditions(spectra: pd.DataFrame) -> pd.DataFrame:
    """A row per net: `log10_condition`, the mean over samples, and beside it `predicted` and `z`.

    Args:
        spectra: rows of "jacobian_spectrum"; where they come from `with_predicted_spectra`, theory's law is in them.
    """
    spectra = spectra.assign(predicted=spectra.get("predicted", np.nan), valid=spectra.get("valid", False))
    spread = log_conditions(spectra, ("log_singular_value", "predicted"))  # nan where one is not predicted
    spread = spread.groupby("cell", sort=False).mean() / math.log(10)
    spread = spread.rename(columns={"log_singular_value": "log10_condition"}).reset_index()
    cells = spectra.drop_duplicates("cell").drop(columns=["rank", "sample", "log_singular_value", "predicted", "z"],
                                                 errors="ignore")
    rows = cells.merge(spread, on="cell")
    groups = rows.groupby(KIND, dropna=False, sort=False)["log10_condition"]
    gap = groups.transform("mean") - rows["predicted"]
    return rows.assign(z=z_of(gap, groups.transform("std"), groups.transform("count")))
