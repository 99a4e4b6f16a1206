"""The numbers behind the paper's figure 1, beside ours.

Source: the authors' random-search tables, of which a public copy exists; the figure of the paper (Srivastava, Greff,
Schmidhuber 2015, arXiv:1507.06228, section 3.1) prints no numbers.  That the tables' loss is the mean training
cross-entropy [nats] over the 60,000 images of MNIST after 400 epochs is inferred.  Of 100 runs: the best, the mean of
the best 3, the mean of the best 10.
"""

import numpy as np
import pandas as pd

from flowstudy.arguments import a_real, a_whole, check_frame, optional, takes

FIGURE_1 = pd.DataFrame([
    ("plain", 10, 6.6e-6, 1.1e-5, 2.6e-5), ("plain", 20, 1.35e-5, 2.6e-5, 8.4e-5),
    ("plain", 50, 1.3e-3, 2.2e-3, 4.8e-3), ("plain", 100, 3.0e-2, 5.5e-2, 1.2e-1),
    ("highway", 10, 1.0e-5, 1.5e-5, 3.7e-5), ("highway", 20, 4.3e-5, 5.1e-5, 8.6e-5),
    ("highway", 50, 6.8e-6, 7.3e-6, 7.4e-5), ("highway", 100, 6.6e-5, 1.05e-4, 4.5e-4),
], columns=["net", "depth", "best", "best_3", "best_10"])
EPOCHS, RUNS = 400, 100


@takes(loss=check_frame, top=a_whole(1), deepest=optional(check_frame),
       trains_below=optional(a_real("positive and finite")))
def figure_1_claims(loss: pd.DataFrame, top: int, deepest: pd.DataFrame | None = None,
                    trains_below: float | int | None = None) -> pd.DataFrame:
    """The best loss, and the mean of the best `top`, for each net and depth, beside those of the authors' tables.

    Args:
        loss: of `run(measure="training_loss")`. A run that diverged counts as chance, ln 10, in the mean.
        top: how many runs the mean is over: 3 and 10 have their published counterparts.
        deepest: the loss of one very deep highway net, which the companion paper (arXiv:1505.00387) trained on
            CIFAR-100 without a number.
        trains_below: a training loss [nats]; with it, for each net and depth, also the share of all runs that end below
            it.  The authors' shares are not at hand.

    Returns:
        Rows of REPLICATION.md: `item`, `quantity`, `paper` and `ours` [nats], `note`.  `paper` is nan where the tables
        have no mean over as many runs, and on other data sets.
    """
    data = loss["dataset"].iloc[0]
    effort = {kind: (int(own["cell"].nunique()), int(own["epochs"].max()))
              for kind, own in loss.groupby(["net", "depth"])}
    rows, best_of = [], {}
    for (net, depth), best, mean in ours(loss, top):
        runs, epochs = effort[net, depth]
        best_of[net, depth] = best
        for name, found, words in (("best", best, f"best of {runs} runs"),
                                   (f"best_{top}", mean, f"mean of the best {top} of {runs} runs")):
            published = published_loss(net, depth, name) if data == "mnist" else np.nan
            rows.append(("figure 1", f"{net} {depth}: {words}", published, found,
                         meaning(published, found, runs, epochs, name)))
    for (net, depth), finals in finals_of(loss) if trains_below is not None else ():
        runs, epochs = effort[net, depth]
        rows.append(("figure 1", f"{net} {depth}: share of {runs} runs that end below {trains_below:g}", np.nan,
                     float((finals < trains_below).mean()),
                     f"after {epochs_in_words(epochs)}; of the authors' 100 runs no share is at hand"))
    if ("plain", 100) in best_of and ("highway", 100) in best_of:
        ratio = best_of["plain", 100] / best_of["highway", 100]
        both = [effort[net, 100] for net in ("plain", "highway")]
        runs, epochs = (in_words(*numbers) for numbers in zip(*both, strict=True))
        rows.append(("figure 1", "best plain over best highway, depth 100", np.nan, ratio,
                     f"the paper's text: more than two orders of magnitude; that is of {RUNS} runs of {EPOCHS} epochs, "
                     f"this of {runs} of {epochs}"))
    if deepest is not None:
        start, end = deepest.iloc[0], deepest.iloc[-1]
        rows.append(("figure 1", f"highway {end['depth']}: loss after {epochs_in_words(int(end['epoch']))}", np.nan,
                     end["loss"], f"from {start['loss']:.3f}: it learns; the paper prints no number"))
    return pd.DataFrame(rows, columns=["item", "quantity", "paper", "ours", "note"]).astype({"paper": float})


def published_loss(net: str, depth: int, name: str) -> float:
    rows = FIGURE_1[(FIGURE_1["net"] == net) & (FIGURE_1["depth"] == depth)]
    return float(rows[name].iloc[0]) if len(rows) and name in rows else np.nan


def meaning(published: float, found: float, runs: int, epochs: int, name: str) -> str:
    """A sentence that interprets the difference between the authors' number and ours."""
    if np.isnan(published):
        return ""
    theirs = "best of 100" if name == "best" else f"mean of the best {name.removeprefix('best_')} of 100"
    if epochs < EPOCHS or runs < RUNS:
        return (f"authors' tables, {theirs}, {EPOCHS} epochs; ours: {epochs} epochs, {runs} runs: "
                f"{'higher, as so few updates leave it' if found > published else 'lower all the same'}")
    factor = found / published
    return f"authors' tables, {theirs}; ours is {factor:.2g} times that"


def ours(loss: pd.DataFrame, top: int) -> list[tuple[tuple[str, int], float, float]]:
    """The best final loss and the mean of the best `top`, for each net and depth; a diverged run counts as chance."""
    ordered = ((kind, finals.fillna(np.log(10)).sort_values()) for kind, finals in finals_of(loss))
    return [(kind, float(finals.iloc[0]), float(finals.iloc[:top].mean())) for kind, finals in ordered]


def finals_of(loss: pd.DataFrame) -> list[tuple[tuple[str, int], pd.Series]]:
    """The final losses of each net and depth, plain nets first; nan of a run that diverged."""
    last = loss[loss["epoch"] == loss.groupby("cell")["epoch"].transform("max")]
    kinds = sorted(last.groupby(["net", "depth"], sort=False), key=lambda group: (group[0][0] != "plain", group[0]))
    return [(kind, runs["loss"]) for kind, runs in kinds]


def in_words(plain: int, highway: int) -> str:
    return str(plain) if plain == highway else f"{plain} (plain) and {highway} (highway)"


def epochs_in_words(epochs: int) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"
