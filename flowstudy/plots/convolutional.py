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
ONE_RUN = ("A", "C")  # of which the paper gives one run's accuracy
EPOCHS = {"mnist": 300, "cifar10": 400, "cifar100": 400}  # of the authors' solvers
MNIST_RATE, CIFAR_RATE = 0.01, 0.025  # the authors' learning rates


def conv_training(frame: pd.DataFrame) -> Figure:
    """Training loss and test error by epoch, a row of panels for each data set and learning rate: highway nets solid,
    their plain twins dashed, a line for each seed; the paper's highway nets after their last epoch dotted, where the
    data set is theirs.

    Source: Srivastava et al. 2015, tables 1 to 3.
    """
    colors = dict(zip(frame["net"].unique(), sns.color_palette("colorblind"), strict=False))
    settings = frame.groupby(["dataset", "learning_rate"], sort=False)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6 * len(settings)), layout="constrained")
        panels = figure.subplots(len(settings), 2, squeeze=False, sharey="col")
        for (setting, rows), axes in zip(settings, panels, strict=True):
            draw_setting(*axes, *setting, rows, colors)
    return figure


def draw_setting(loss: Axes, error: Axes, dataset: str, rate: float, frame: pd.DataFrame, colors: dict) -> None:
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
    loss.set(title=f"training, with dropout, learning rate {rate:g}", ylabel="mean cross-entropy  [nats]")
    error.set(title=f"test set of {dataset}", ylabel="test error  [%]")
    loss.legend(loc="best")


def conv_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the last epoch [%], mean over seeds, beside the paper's: rows of REPLICATION.md.

    `paper` is empty for plain nets, which the paper did not train, for other data sets and other learning rates.
    """
    kinds = ["dataset", "net", "block", "learning_rate", "parameters"]
    runs = frame.groupby([*kinds, "seed"], sort=False).last().reset_index()
    items = {net: item for item, _, net in PUBLISHED}
    rows = []
    for (dataset, net, block, rate, parameters), group in runs.groupby(kinds, sort=False):
        right = 100 * group["test_accuracy"]
        theirs = block == "highway" and rate == (MNIST_RATE if net.startswith("mnist") else CIFAR_RATE)
        epochs = sorted(group["epoch"].unique())
        published = PUBLISHED.get((items[net], dataset, net)) if theirs else None
        rows.append({
            "item": items[net],
            "quantity": f"{net}, {block}, {parameters:,} parameters, learning rate {rate:g}: test accuracy %",
            "paper": published, "ours": right.mean(),
            "note": dataset + (f", mean of {len(group)} seeds, standard deviation {right.std():.2f}" if len(group) > 1
                               else ", one seed")
                    + f", after epoch {', '.join(map(str, epochs))}"
                    + (f"; {right.isna().sum()} diverged" if right.isna().any() else "")
                    + ("" if published is None else against(dataset, net, int(max(epochs)))),
        })
    return pd.DataFrame(rows).astype({"paper": "float64"})


def against(dataset: str, net: str, epochs: int) -> str:
    kind = "one run" if net in ONE_RUN else "mean of 5 runs"
    short = epochs < EPOCHS[dataset]
    return f"; the paper's is {kind} of {EPOCHS[dataset]} epochs" + (": ours stopped early" if short else "")
