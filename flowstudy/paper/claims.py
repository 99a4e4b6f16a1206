"""The claims of the paper's section 4 about a trained highway net, each as a number beside the paper's.

Each function returns rows of REPLICATION.md: `item` (the figure), `quantity`, `paper` and `ours` (numbers, None where
none is published), `note` (the verdict and its meaning).  For a frame of several nets, `ours` is their mean.

Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), sections 4.1 and 4.2.
"""

import math

import numpy as np
import pandas as pd

from flowstudy.arguments import NAME, a_whole, check_frame, takes

from .published import EPOCHS, published_loss

OPEN = 0.5      # a gate above this lets more of H through than of x
EARLY = 15      # the paper, on MNIST: most of the outputs' change happens, and classes differ, in the first 15 layers
SUBSTANTIAL = 0.1  # difference of mean gate activity, of a range from 0 to 1, that can be seen in a picture
LATE = 45       # the paper, on MNIST: layers 15 to 45 hardly matter


@takes(routing=check_frame)
def routing_claims(routing: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about figure 2, from a frame of the measurement "gate_routing".

    Returns:
        Rows of REPLICATION.md, see the module.
    """
    change = routing["trained_gate_bias"] - routing["gate_bias"]
    by_layer = routing.groupby("layer")[["trained_gate_bias", "activity"]].mean()
    outputs = routing.pivot_table(index="layer", columns=["cell", "unit"], values="single_output").to_numpy()
    sparse = float((routing["single_activity"] > OPEN).mean())
    early = by_layer.index[1:] <= EARLY  # a step leads to the layer that it is counted to
    changes = {"change": share_of_change(outputs, early, 1), "squared change": share_of_change(outputs, early, 2)}
    depth_slope = rank_correlation(by_layer.index.to_numpy(), by_layer["trained_gate_bias"].to_numpy())
    biased = rank_correlation(by_layer["trained_gate_bias"].to_numpy(), by_layer["activity"].to_numpy())
    return claims([
        ("figure 2", "share of gate biases that fell in training", None, float((change < 0).mean()),
         verdict(bool((change < 0).mean() > 0.5), "most biases decrease further")),
        ("figure 2", "mean change of the gate biases", None, float(change.mean()), ""),
        ("figure 2", "share of one sample's gates above 0.5", None, sparse,
         verdict(sparse < 0.25, "single-sample gate activity is sparse (below a quarter)")),
        *(("figure 2", f"share of the {kind} of a sample's block outputs in the first {EARLY} layers", None, share,
           verdict(share > 0.5, "outputs form stripes: most change comes early")) for kind, share in changes.items()),
        ("figure 2", "rank correlation over layers of depth and mean gate bias", None, depth_slope,
         "positive in the paper's CIFAR-100 net; it says nothing of MNIST"),
        ("figure 2", "rank correlation over layers of mean gate bias and mean activity", None, biased,
         "negative in the paper's CIFAR-100 net; it says nothing of MNIST"),
    ])


@takes(by_class=check_frame)
def class_claims(by_class: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about figure 3, from a frame of the measurement "gate_routing_by_class".

    Returns:
        Rows of REPLICATION.md, see the module.
    """
    size = by_class["difference"].abs()
    early = size[by_class["layer"] <= EARLY]
    even = (EARLY - 1) / (by_class["layer"].max() - 1)  # if it were the same in every layer
    return claims([
        ("figure 3", f"largest difference of a class from the mean, in the first {EARLY} layers", None,
         float(early.max()), verdict(bool(early.max() > SUBSTANTIAL), "substantial differences can be seen there; the "
                                     f"paper gives no number, here {SUBSTANTIAL:g} of a gate's range is asked for")),
        ("figure 3", f"share of the difference between classes in the first {EARLY} layers", None,
         float(early.sum() / size.sum()), f"evenly spread it would be {even:.2f}; the paper claims no share"),
    ])


@takes(lesions=check_frame, samples=a_whole(1))
def lesion_claims(lesions: pd.DataFrame, samples: int) -> pd.DataFrame:
    """The paper's claims about figure 4, from a frame of the measurement "lesions" of nets of one depth.

    Args:
        samples: size of the training set, for the standard error of the training error.

    Returns:
        Rows of REPLICATION.md, see the module.
    """
    by_layer = lesions.groupby("layer")["error"].mean()
    intact, cut = by_layer.loc[0], by_layer.drop(0)
    early, middle = cut[cut.index <= EARLY].mean(), cut[(cut.index > EARLY) & (cut.index <= LATE)].mean()
    margin = idle_margin(float(intact), samples)
    return claims([
        ("figure 4", "training error of the intact net", None, float(intact), ""),
        ("figure 4", f"mean error without one of layers 2 to {EARLY}", None, float(early), ""),
        ("figure 4", f"mean error without one of layers {EARLY + 1} to {LATE}", None, float(middle),
         # "Hardly" is no number: less than half of what an early layer does, the weakest reading that says anything.
         verdict(bool(middle - intact < (early - intact) / 2), "early layers matter much, these hardly")),
        ("figure 4", f"share of layers whose lesion adds less than {margin:.2%} to the error", 0.6,
         float((cut <= intact + margin).mean()), "the paper's text: about 60 % of the layers do not contribute; our "
         "bound is two binomial standard errors, or one sample in a thousand"),
        ("figure 4", "share of layers whose lesion adds nothing at all to the error", 0.6,
         float((cut <= intact).mean()), "the same, to the last sample"),
    ])


@takes(training_loss=check_frame, accuracy=check_frame, item=NAME)
def training_claims(training_loss: pd.DataFrame, accuracy: pd.DataFrame, item: str) -> pd.DataFrame:
    """The loss and the accuracy of the net that a figure shows, from frames of "training_loss" and "accuracy".

    Returns:
        Rows of REPLICATION.md, see the module; `item` names the figure.  The loss has the authors' beside it where it
        is of a net like theirs: on MNIST, after as many epochs, of a kind and depth that their tables have.
    """
    last = training_loss[training_loss["epoch"] == training_loss["epoch"].max()]
    cell = last.iloc[0]
    theirs = published_loss(cell["net"], int(cell["depth"]), "best") if cell["dataset"] == "mnist" else math.nan
    alike = not math.isnan(theirs) and cell["epoch"] == EPOCHS
    return claims([(item, "training loss of the net  [nats]", theirs if alike else None, float(last["loss"].mean()),
                    f"the authors' tables, the run whose settings these are: {theirs:g}" if alike else ""),
                   (item, "test accuracy of the net", None, float(accuracy["test_accuracy"].mean()), "")])


def concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def idle_margin(error: float, samples: int) -> float:
    """The rise of the error below which a layer counts as idle: two binomial standard errors, at least 0.001."""
    return max(2 * math.sqrt(error * (1 - error) / samples), 1e-3)


def share_of_change(outputs: np.ndarray, counted: np.ndarray, power: int) -> float:
    """Share of the outputs' change from block to block that falls into the counted steps.

    With `power` 2, the few units that change much weigh more than the many that drift a little in every layer.  The
    share is 1 where nothing changes at all.

    Args:
        outputs: (layer, unit).
        counted: (layer - 1,), whether a step counts.
    """
    steps = (np.abs(np.diff(outputs, axis=0)) ** power).sum(axis=1)
    return float(steps[counted].sum() / steps.sum()) if steps.sum() > 0 else 1.0


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; nan where one of the two does not vary."""
    ranks = pd.DataFrame({"a": a, "b": b}).rank()
    return float(ranks["a"].corr(ranks["b"])) if ranks.nunique().min() > 1 else math.nan


def verdict(holds: bool, claim: str) -> str:
    return f"{'holds' if holds else 'does not hold'} here: {claim}"


def claims(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["item", "quantity", "paper", "ours", "note"])
    return frame.astype({"paper": float, "ours": float})
