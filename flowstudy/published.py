"""The numbers of the paper's figure 1, beside ours.

Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), section 3.1, and the authors' random-search tables; mean
training cross-entropy [nats] over the 60,000 images of MNIST after 400 epochs, the best and the mean of the best 10 of
100 runs.
"""

import numpy as np
import pandas as pd

FIGURE_1 = pd.DataFrame([
    ("plain", 10, 6.6e-6, 2.6e-5), ("plain", 20, 1.35e-5, 8.4e-5), ("plain", 50, 1.3e-3, 4.8e-3),
    ("plain", 100, 3.0e-2, 1.2e-1), ("highway", 10, 1.0e-5, 3.7e-5), ("highway", 20, 4.3e-5, 8.6e-5),
    ("highway", 50, 6.8e-6, 7.4e-5), ("highway", 100, 6.6e-5, 4.5e-4),
], columns=["net", "depth", "best", "mean_of_top"])


def figure_1_claims(loss: pd.DataFrame, top: int, deepest: pd.DataFrame | None = None) -> pd.DataFrame:
    """Best and mean of the `top` runs of each net and depth beside the published ones: what REPLICATION.md is made of.

    Args:
        loss: of `run(measure="training_loss")`. A run that diverged counts as chance, ln 10, in the mean.
        top: how many runs the mean is over.
        deepest: the loss of one very deep highway net, which the companion paper (arXiv:1505.00387) trained on
            CIFAR-100 without a number.
    """
    data, epochs = loss["dataset"].iloc[0], int(loss["epochs"].max())
    runs = int(loss.groupby(["net", "depth"])["cell"].nunique().max())
    note = "" if data == "mnist" else f"on {data}, not MNIST: not to be compared"
    rows = []
    for (net, depth), best, mean in ours(loss, top):
        paper = FIGURE_1[(FIGURE_1["net"] == net) & (FIGURE_1["depth"] == depth)]
        published = paper.iloc[0] if len(paper) else {"best": np.nan, "mean_of_top": np.nan}
        rows += [("figure 1", f"{net} {depth}: best of {runs} runs, {epochs} epochs", published["best"], best, note),
                 ("figure 1", f"{net} {depth}: mean of the best {top}", published["mean_of_top"], mean, note)]
    if deepest is not None:
        start, end = deepest.iloc[0], deepest.iloc[-1]
        rows.append(("figure 1", f"highway {end['depth']}: loss after {end['epoch']} epochs", np.nan, end["loss"],
                     f"from {start['loss']:.3f}; the paper has no number"))
    return pd.DataFrame(rows, columns=["item", "quantity", "paper", "ours", "note"]).astype({"paper": float})


def ours(loss: pd.DataFrame, top: int) -> list[tuple[tuple[str, int], float, float]]:
    last = loss[loss["epoch"] == loss.groupby("cell")["epoch"].transform("max")]
    found = []
    for kind, runs in last.groupby(["net", "depth"], sort=False):
        finals = runs["loss"].fillna(np.log(10)).sort_values()
        found.append((kind, float(finals.iloc[0]), float(finals.iloc[:top].mean())))
    return found
