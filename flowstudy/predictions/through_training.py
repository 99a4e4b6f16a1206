"""Spectra and gradient flow of nets at moments of their training, and theory for the first of them."""

import math

import pandas as pd

from flowstudy.arguments import check_frame, takes

from .by_net import backward_slopes, log_conditions
from .layers import KIND
from .spectra import net_statistics, with_predicted_statistics


@takes(spectra=check_frame, flow=check_frame)
def through_training(spectra: pd.DataFrame, flow: pd.DataFrame) -> pd.DataFrame:
    """Statistics of nets' spectra and gradients during training, and theory for epoch 0.

    Args:
        spectra: rows of "jacobian_spectrum", part "body", measured `at` epochs.
        flow: rows of "gradient_flow", `at` the same epochs.

    Returns:
        A row per net, moment and statistic: `measured`, and `predicted` at epoch 0 where theory has an answer.  The
        statistics are those of `with_predicted_statistics`; `log10_condition`, log10 of the largest over the smallest
        singular value that is not 0, mean over samples; and `slope`, of ln ||error signal||^2 per layer towards the
        input.
    """
    frames = []
    for epoch, rows in spectra.groupby("epoch"):
        of_flow = flow[flow["epoch"] == epoch]
        statistics = with_predicted_statistics(rows, of_flow) if epoch == 0 else net_statistics(rows)
        frames += [statistics, conditions(rows), slopes(of_flow)]
    found = pd.concat([frame.drop(columns=["z", "dataset", "seed"], errors="ignore") for frame in frames])
    found = found.merge(spectra[["cell", "dataset", "seed"]].drop_duplicates("cell"), on="cell")
    return found[["cell", *KIND, "dataset", "seed", "epoch", "statistic", "measured", "predicted"]]


def conditions(spectra: pd.DataFrame) -> pd.DataFrame:
    spread = log_conditions(spectra)["log_singular_value"] / math.log(10)
    return by_cell(spectra, spread.groupby("cell", sort=False).mean(), "log10_condition")


def slopes(flow: pd.DataFrame) -> pd.DataFrame:
    return by_cell(flow, backward_slopes(flow).set_index("cell")["slope"], "slope")


def by_cell(rows: pd.DataFrame, measured: pd.Series, statistic: str) -> pd.DataFrame:
    """One row a cell, with its fields."""
    cells = rows.drop_duplicates("cell").set_index("cell")[[*KIND, "epoch"]]
    return cells.assign(statistic=statistic, measured=measured, predicted=math.nan).reset_index()
