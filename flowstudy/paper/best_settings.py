"""The best setting of each net and depth in the authors' search: a plan of such nets, and a table of their losses.

Source: the authors' random-search tables, of which a public copy exists (`published.FIGURE_1` has their losses).  Rates
are in the authors' convention, the decay is a factor for each epoch, the batch is of 20 samples.  That weights were
uniform, of variance 2 / fan_in for ReLU and 1 / fan_in for tanh, is inferred from the authors' framework.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from flowstudy.arguments import check_frame, takes
from flowstudy.sweep import Cell, grid

from .published import EPOCHS, FIGURE_1, in_words

INITS = {"relu": "he_uniform", "tanh": "lecun_uniform"}
BEST_SETTINGS = pd.DataFrame([
    ("plain", 10, "relu", np.nan, 0.11886, 0.98140, 0.98484), ("plain", 20, "relu", np.nan, 0.04022, 0.82312, 0.98554),
    ("plain", 50, "tanh", np.nan, 0.00430, 0.96862, 0.98958), ("plain", 100, "tanh", np.nan, 0.00123, 0.91501, 0.98085),
    ("highway", 10, "relu", -1.0, 0.03417, 0.76520, 0.98910), ("highway", 20, "tanh", -3.0, 0.34328, 0.51015, 0.98289),
    ("highway", 50, "tanh", -2.0, 0.46954, 0.54141, 0.98682), ("highway", 100, "relu", -5.0, 0.02055, 0.90870, 0.98668),
], columns=["net", "depth", "activation", "gate_bias", "learning_rate", "momentum", "decay"])


def setting_of(net: str, depth: int) -> dict[str, object]:
    """The fields of a cell of that net and depth, except for its depth."""
    row = BEST_SETTINGS[(BEST_SETTINGS["net"] == net) & (BEST_SETTINGS["depth"] == depth)].iloc[0].to_dict()
    del row["depth"]
    gate_bias = None if np.isnan(row["gate_bias"]) else row["gate_bias"]
    return row | {"gate_bias": gate_bias, "init": INITS[row["activation"]], "batch_size": 20}


def best_settings(depths: Iterable[int] = (10, 20, 50, 100), *, dataset: str = "mnist", epochs: int = EPOCHS,
                  seeds: int = 1, train_samples: int | None = None) -> list[Cell]:
    """Nets of the authors' best setting for each kind of net and depth.

    Returns:
        A plan for `run(measure="training_loss")`, with `seeds` cells for each kind of net and depth.

    Source: Srivastava, Greff & Schmidhuber 2015, figure 1; the module says where the settings are from.
    """
    return [cell for net in ("plain", "highway") for depth in depths
            for cell in grid(**setting_of(net, depth), depth=depth, dataset=dataset, epochs=epochs, seed=range(seeds),
                             train_samples=train_samples)]


@takes(loss=check_frame)
def best_settings_claims(loss: pd.DataFrame) -> pd.DataFrame:
    """The loss after the last epoch, beside the authors' after 400 epochs.

    Args:
        loss: from `run(best_settings(...), measure="training_loss")`.

    Returns:
        Rows of REPLICATION.md: `item`, `quantity`, `paper` and `ours` [nats], `note`, for each net and depth.  `ours`
        is the median over seeds, a run that diverged counting as chance, ln 10.  A last row has the ratio of the plain
        nets' loss at 100 layers to the highway nets'.
    """
    last = loss[loss["epoch"] == loss.groupby("cell")["epoch"].transform("max")]
    last = last.assign(loss=last["loss"].fillna(np.log(10)))
    theirs = FIGURE_1.set_index(["net", "depth"])["best"]
    rows, medians = [], last.groupby(["net", "depth"], sort=False)["loss"].median()
    for (net, depth), median in medians.items():
        runs = last[(last["net"] == net) & (last["depth"] == depth)]
        least, most, epochs = runs["loss"].min(), runs["loss"].max(), int(runs["epochs"].max())
        seeds = f"{len(runs)} seeds, {least:.2g} to {most:.2g}" if len(runs) > 1 else "1 seed"
        published = theirs[net, depth] if loss["dataset"].iloc[0] == "mnist" else np.nan
        rows.append((f"{net} {depth}: loss by the authors' best setting", published, median,
                     f"{seeds}, after {epochs} epochs; the authors' best of 100 after {EPOCHS}"))
    if {("plain", 100), ("highway", 100)} <= set(medians.index):
        epochs = in_words(*(int(last.loc[last["net"] == net, "epochs"].max()) for net in ("plain", "highway")))
        rows.append(("plain over highway, depth 100, the authors' best settings", np.nan,
                     medians["plain", 100] / medians["highway", 100],
                     f"the paper's text: more than two orders of magnitude; after {epochs} epochs"))
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours", "note"])
    frame.insert(0, "item", "figure 1, best settings")
    return frame.astype({"paper": float})
