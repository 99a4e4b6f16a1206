"""The paper's convolutional nets in training, and its tables beside ours."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from .style import STYLE
from .training import CHANCE

# Test accuracy of highway nets [%], mean over 5 runs where the paper gives one: Srivastava et al. 2015, tables 1 to 3.
PUBLISHED = {
    ("table 1", "mnist", "mnist_16"): 99.40, ("table 1", "mnist", "mnist_32"): 99.54,
    ("table 2", "cifar10", "A"): 89.18, ("table 2", "cifar10", "B"): 92.28, ("table 2", "cifar10", "C"): 91.20,
    ("table 3", "cifar10", "cifar_10"): 92.31, ("table 3", "cifar100", "cifar_100"): 67.61,
}


def conv_training(frame: pd.DataFrame) -> Figure:
    """Training loss and test error by epoch, a row of panels for each data set: highway nets solid, their plain twins
    dashed, a line for each seed; the paper's highway nets after their last epoch dotted, where the data set is theirs.

    Source: Srivastava et al. 2015, tables 1 to 3.
    """
    colors = dict(zip(frame["net"].unique(), sns.color_palette("colorblind"), strict=False))
    datasets = frame.groupby("dataset", sort=False)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6 * len(datasets)), layout="constrained")
        panels = figure.subplots(len(datasets), 2, squeeze=False)
        for (dataset, rows), axes in zip(datasets, panels, strict=True):
            draw_dataset(*axes, dataset, rows, colors)
    return figure


def draw_dataset(loss: Axes, error: Axes, dataset: str, frame: pd.DataFrame, colors: dict) -> None:
    for (net, block, seed), rows in frame.groupby(["net", "block", "seed"], sort=False):
        label = f"{net}, {block}" if seed == frame["seed"].min() else None
        style = {"color": colors[net], "ls": "-" if block == "highway" else "--", "lw": 1.4}
        loss.plot(rows["epoch"], rows["loss"], label=label, **style)
        error.plot(rows["epoch"], 100 * (1 - rows["test_accuracy"]), **style)
    for (_, published_on, net), accuracy in PUBLISHED.items():
        if net in set(frame["net"]) and published_on == dataset:
            error.axhline(100 - accuracy, color=colors[net], ls=":", lw=1.2)
            error.annotate("paper", (1, 100 - accuracy), xycoords=("axes fraction", "data"), xytext=(-4, 2),
                           textcoords="offset points", ha="right", color=colors[net], fontsize=9)
    if dataset != "cifar100":  # ten classes
        loss.axhline(CHANCE, color="0.4", lw=0.8, ls=":")
        loss.annotate("chance", (1, CHANCE), xycoords=("axes fraction", "data"), xytext=(-4, -3),
                      textcoords="offset points", ha="right", va="top", color="0.35", fontsize=9)
    for ax in (loss, error):
        ax.set(xlabel="epoch", yscale="log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    loss.set(title="training, with dropout", ylabel="mean cross-entropy  [nats]")
    error.set(title=f"test set of {dataset}", ylabel="test error  [%]")
    loss.legend(loc="best")


def conv_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the last epoch [%], mean over seeds, beside the paper's: rows of REPLICATION.md.

    `paper` is empty for plain nets, which the paper did not train, and for other data sets.
    """
    runs = frame.groupby(["dataset", "net", "block", "parameters", "seed"], sort=False).last().reset_index()
    items = {net: item for item, _, net in PUBLISHED}
    rows = []
    for (dataset, net, block, parameters), group in runs.groupby(["dataset", "net", "block", "parameters"], sort=False):
        right = 100 * group["test_accuracy"]
        epochs = sorted(group["epoch"].unique())
        rows.append({
            "item": items[net], "quantity": f"{net}, {block}, {parameters:,} parameters: test accuracy %",
            "paper": PUBLISHED.get((items[net], dataset, net)) if block == "highway" else None, "ours": right.mean(),
            "note": dataset + (f", mean of {len(group)} seeds, standard deviation {right.std():.2f}" if len(group) > 1
                               else ", one seed")
                    + f", after epoch {', '.join(map(str, epochs))}"
                    + (f"; {right.isna().sum()} diverged" if right.isna().any() else ""),
        })
    return pd.DataFrame(rows).astype({"paper": "float64"})
