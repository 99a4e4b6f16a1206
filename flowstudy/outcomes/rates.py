"""The learning rates at which nets train, by depth; and where among highway nets the edge of training runs."""

import numpy as np
import pandas as pd

from flowstudy import theory
from flowstudy.trainability.reading import KERNEL
from flowstudy.trainability.trials.rates import USUAL_RATES

from .judged import TRAINED, kernel_score
from .known_outcomes import OPTIMIZERS


def windows(rows: pd.DataFrame, families: tuple[str, ...] = ("plain", "highway")) -> pd.DataFrame:
    """The interval of the usual rates in which a net trains.

    Args:
        rows: of `known_outcomes`.

    Returns:
        A row for each net and optimizer: `lowest` and `highest` rate at which it trained, nan where it did at none;
        `rates`, at how many; `stable_rate`, the largest at which the first steps of gradient descent with momentum do
        not raise the loss, by the kernel; nan for Adam, of which it knows none.
    """
    keys = ["architecture", "family", "activation", "depth", "start", "seed", "stable_rate", "dataset", "steps"]
    table = []
    for row in rows[rows["family"].isin(families)].to_dict("records"):
        for optimizer in OPTIMIZERS:
            accuracies = [float(word) for word in row[f"accuracies_{optimizer}"].split()]
            trains = [rate for rate, accuracy in zip(USUAL_RATES[optimizer], accuracies, strict=True)
                      if accuracy > TRAINED]
            table.append({key: row[key] for key in keys} | {
                "stable_rate": row["stable_rate"] if optimizer == "momentum" else np.nan, "optimizer": optimizer,
                "lowest": min(trains, default=np.nan), "highest": max(trains, default=np.nan), "rates": len(trains)})
    return pd.DataFrame(table)


def highway_edge(rows: pd.DataFrame) -> pd.DataFrame:
    """The gate bias up to which highway nets of a depth train, and up to which they are expected to.

    Args:
        rows: of `known_outcomes`, the family "highway map".

    Returns:
        `depth` and the biases `momentum` and `adam` (where the accuracy falls through 0.7), `kernel` (where the
        reading of the kernel rises through the middle of its two thresholds) and `rule` (-ln(2 L - 1),
        `theory.suggest_gate_bias`); nan where nothing falls or rises through it.
    """
    table, middle = [], sum(KERNEL["adam"]) / 2
    for depth, nets in rows.groupby("depth"):
        nets = nets.assign(kernel=kernel_score(nets)).groupby("start", as_index=False).median(numeric_only=True)
        edges = {optimizer: crossing(nets["start"], TRAINED - nets[f"accuracy_{optimizer}"])
                 for optimizer in OPTIMIZERS}
        table.append({"depth": depth, **edges, "kernel": crossing(nets["start"], nets["kernel"] - middle),
                      "rule": theory.suggest_gate_bias(int(depth) - 1)})
    return pd.DataFrame(table)


def crossing(places: pd.Series, heights: pd.Series) -> float:
    """Between which places, ascending, a height first rises through 0, on the line between the two; else nan."""
    x, y = places.to_numpy(float), heights.to_numpy(float)
    for i in range(len(x) - 1):
        if y[i] < 0 <= y[i + 1]:
            return float(x[i] + (x[i + 1] - x[i]) * -y[i] / (y[i + 1] - y[i]))
    return float("nan")
