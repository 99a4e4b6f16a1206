"""Training of many nets: loss curves by depth, which depth trains, and the paper's convolutional nets."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from flowstudy import theory
from flowstudy.arguments import NAME, a_whole, check_frame, check_one_of, one_among, takes
from flowstudy.paper.conv_nets import PUBLISHED
from flowstudy.paper.published import FIGURE_1
from flowstudy.predictions import weight_var

from .style import STYLE, depth_axis, depth_colors

CLASSES = 10
CHANCE = math.log(CLASSES)  # cross-entropy of a ten-class net that knows nothing [nats]


@takes(frame=check_frame, axis=one_among(("weight_var", "gate_bias")), accuracy=NAME)
def trainability_map(frame: pd.DataFrame, axis: str = "weight_var", accuracy: str = "test_accuracy") -> Figure:
    """Accuracy after training over depth and `axis`, and the depth that theory allows drawn over it.

    Plain tanh nets over "weight_var": 6 xi_c, six depth scales of the correlation of two inputs (Schoenholz et al.
    2017).  Highway nets over "gate_bias": both rules of `theory.suggest_gate_bias`.  A run that diverged counts as
    chance.
    """
    check_one_of("trainability_map", "accuracy", accuracy, list(frame.columns))
    frame = frame.assign(weight_var=frame["gain"] ** 2, right=frame[accuracy].fillna(1 / CLASSES))
    table = frame.pivot_table(index="depth", columns=axis, values="right", aggfunc="median")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.subplots()
        picture = ax.pcolormesh(table.columns, table.index, table, shading="nearest", cmap="viridis", vmin=0, vmax=1)
        figure.colorbar(picture, label=f"{accuracy.replace('_', ' ')}, median over seeds")
        for x, depth, style in allowed_depths(frame, axis):
            ax.plot(x, depth, color="white", lw=3.0)
            ax.plot(x, depth, **style | {"color": "crimson", "lw": 1.6})
        edges = ax.get_xlim(), (table.index.min() * 0.8, table.index.max() * 1.25)
        ax.set(xlim=edges[0], ylim=edges[1], yscale="log", ylabel="depth (hidden layers)",
               xlabel={"weight_var": r"weight variance $\sigma_w^2$", "gate_bias": "gate bias $b_T$"}[axis])
        ax.set_yticks(table.index, [f"{d}" for d in table.index])
        ax.minorticks_off()
        ax.grid(visible=False)
        cell = frame.iloc[0]
        ax.set_title(f"{cell['net']} {cell['activation']}, width {cell['width']}, {cell['dataset']}, "
                     f"{cell['epochs']} epochs")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8, frameon=False)
    return figure


Curve = tuple[np.ndarray, np.ndarray, dict[str, object]]  # x, y, and how it is drawn


def allowed_depths(frame: pd.DataFrame, axis: str) -> list[Curve]:
    """The curves that theory draws: along `axis`, the largest depth it expects to train."""
    if axis == "gate_bias":
        return gate_bias_rules(frame, float(max(2, frame["depth"].min())), float(frame["depth"].max()))
    variance = np.linspace(frame["weight_var"].min(), frame["weight_var"].max(), 200)
    field = theory.mean_field(frame["activation"].iloc[0], variance, frame["bias_var"].iloc[0])
    return [(variance, 6 * field.xi_c, {"label": "six depth scales, $6 \\xi_c$"})]


def gate_bias_rules(highway: pd.DataFrame, low: float, high: float) -> list[Curve]:
    """Gate bias and depth by both rules of `theory.suggest_gate_bias`, for the highway layers of nets of these depths
    and the runs' weights."""
    cell = highway.iloc[0]
    variance = weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])
    depths = np.unique(np.geomspace(low, high, 8).round().astype(int))
    rate = theory.suggest_gate_bias(depths - 1)
    whole = theory.suggest_gate_bias(depths - 1, "whole net", activation=cell["activation"], weight_var=variance,
                                     gate_weight_var=variance)
    return [(rate, depths, {"label": "a factor e at the late layers' rate, $-\\ln(2 L - 1)$"}),
            (whole, depths, {"label": "a factor e over the whole net, by the recursion", "ls": "--"})]


@takes(frame=check_frame, top=a_whole(1))
def figure_1(frame: pd.DataFrame, top: int = 10) -> Figure:
    """The paper's figure 1: best training curves of plain | highway nets by depth | mean of the `top` settings.

    In the mean, a run that diverged counts as chance.  On MNIST the means over the best 10 of 100 settings in the
    authors' search tables stand beside ours, hollow.  Over the panels: what each kind of net was searched in.

    Source: Srivastava et al. 2015, figure 1.
    """
    best = final_loss(frame)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        plain, highway, summary = figure.subplots(1, 3)
        highway.sharey(plain)
        colors = depth_colors(frame)
        for ax, net in ((plain, "plain"), (highway, "highway")):
            for depth, runs in best[best["net"] == net].groupby("depth"):
                if runs["final"].notna().any():
                    curve = frame[frame["cell"] == runs.loc[runs["final"].idxmin(), "cell"]]
                    ax.plot(curve["epoch"], curve["loss"], color=colors[depth], lw=1.6, label=f"depth {depth}")
            ax.set(title=f"best of {runs_per_net(best, net)} runs, {net}", xlabel="epoch", yscale="log")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.legend(loc="best")
        for net, marker in (("plain", "o"), ("highway", "s")):
            rows = best[best["net"] == net].fillna({"final": CHANCE})
            mean = rows.groupby("depth")["final"].apply(lambda losses: losses.nsmallest(top).mean())
            color = sns.color_palette("colorblind")[net == "plain"]
            summary.plot(mean.index, mean, marker=marker, label=net, color=color)
            if (frame["dataset"] == "mnist").all():
                paper = FIGURE_1[FIGURE_1["net"] == net]
                summary.plot(paper["depth"], paper["best_10"], marker=marker, mfc="white", ls=":", color=color,
                             label=f"{net}, authors' tables (10 of 100)")
        depth_axis(summary, frame["depth"])
        summary.set(title=f"mean of the best {top} settings", xlabel="depth (hidden layers)", yscale="log")
        for ax in (plain, highway, summary):
            ax.axhline(CHANCE, color="0.4", lw=0.8, ls=":")
        summary.annotate("chance", (1, CHANCE), xycoords=("axes fraction", "data"), xytext=(-4, -3),
                         textcoords="offset points", ha="right", va="top", color="0.35", fontsize=9)
        summary.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=7.5, frameon=False)
        plain.set_ylabel("mean training cross-entropy  [nats]")
        searches = [search_in_words(rows, net) for net, rows in best.groupby("net", sort=False)]
        figure.suptitle("; ".join(searches), fontsize=9)
    return figure


def search_in_words(runs: pd.DataFrame, net: str) -> str:
    """How many settings a kind of net had, and the learning rates they were drawn from, as far as they reach."""
    rates = runs["learning_rate"]
    return f"{net}: {runs_per_net(runs, net)} settings a depth, learning rates {rates.min():.2g} to {rates.max():.2g}"


def final_loss(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per run; `final` is the loss after its last epoch, nan where it diverged."""
    last = frame[frame["epoch"] == frame.groupby("cell")["epoch"].transform("max")]
    return last.rename(columns={"loss": "final"})


def runs_per_net(best: pd.DataFrame, net: str) -> int:
    return int(best[best["net"] == net].groupby("depth").size().max() or 0)


@takes(frame=check_frame)
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
