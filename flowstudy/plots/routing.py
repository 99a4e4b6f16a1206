"""Trained highway nets: how their gates route, and what they do without one layer."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import a_whole, check_frame, several, takes

from .message import count, data_of, listed, number, speak
from .style import CLASSES, REFERENCE, STYLE, WIDTH, label_end, net_color

ROUTING = {  # column: title, colour map, what its bar counts
    "trained_gate_bias": ("gate biases, trained", "viridis", "bias"),
    "activity": ("mean gate activity", "magma", "share transformed"),
    "single_activity": ("gate activity, one sample", "magma", "share transformed"),
    "single_output": ("block outputs, one sample", "RdBu_r", "output"),
}
DRAWN = 0.99   # share of a map's values that lie within its colour scale
SLIGHT = 0.01  # a layer hardly matters if its lesion adds errors on less than this share of the samples


@takes(routing=check_frame)
def gate_routing(routing: pd.DataFrame) -> Figure:
    """Gate biases, mean and single-sample gate activity, and block outputs of one net: units across, layers down.

    Args:
        routing: from `run(measure="gate_routing")`.

    Returns:
        The Figure, its message above and its caption below.

    Source: Srivastava et al. 2015, figure 2.
    """
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots(1, 4, sharey=True)
        for ax, (column, (title, colors, unit)) in zip(axes, ROUTING.items(), strict=True):
            table = routing.pivot(index="layer", columns="unit", values=column)
            largest = float(np.nanquantile(np.abs(table), DRAWN))
            limits = {"trained_gate_bias": (None, None), "single_output": (-largest, largest)}
            unit_map(ax, table, title, colors, unit, *limits.get(column, (0.0, largest)))
        axes[0].set_ylabel("layer (2 is the first with gates)")
        layers = routing.groupby("layer")["activity"].mean()
        return speak(figure, f"On average {number(100 * routing['activity'].mean())} % of a signal goes through the "
                     f"transform: most in layer {layers.idxmax()} ({number(100 * layers.max())} %), least in layer "
                     f"{layers.idxmin()} ({number(100 * layers.min())} %).",
                     f"One trained highway net, {cell_in_words(routing)}, on {data_of(routing)}, "
                     f"{count(routing['epochs'].iloc[0], 'epoch')}. A cell is a unit of a layer; the signal goes "
                     "down. Mean: over the training samples; one sample: the first of them unless the study names "
                     "another. Every panel has the scale of its own colour bar, which leaves out the highest "
                     f"{number(100 - 100 * DRAWN)} % of the cells.")


@takes(by_class=check_frame, classes=several(a_whole(0)))
def gate_routing_by_class(by_class: pd.DataFrame, classes: tuple[int, ...] = (0, 7)) -> Figure:
    """Mean gate activity of a class less that over all classes: a panel per class, units across, layers down.

    A further panel has the size of the differences by layer.

    Args:
        by_class: from `run(measure="gate_routing_by_class")`.
        classes: those that are drawn.

    Returns:
        The Figure, its message above and its caption below.

    Source: Srivastava et al. 2015, figure 3.
    """
    rows = by_class[by_class["class"].isin(classes)]
    limit = float(rows["difference"].abs().max())
    size = (rows["difference"] ** 2).groupby([rows["class"], rows["layer"]]).mean() ** 0.5
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        *axes, profile = figure.subplots(1, len(classes) + 1, sharey=True)
        for ax, label in zip(axes, classes, strict=True):
            table = rows[rows["class"] == label].pivot(index="layer", columns="unit", values="difference")
            image = unit_map(ax, table, f"class {label}", "RdBu_r", None, -limit, limit)
        figure.colorbar(image, ax=axes, location="bottom", aspect=40, pad=0.02,
                        label="mean gate activity of the class less that of all")
        for label, dashes, color in zip(classes, ("-", "--", "-.", ":"), CLASSES, strict=False):
            profile.plot(size[label], size[label].index, ls=dashes, color=color, label=f"class {label}")
        profile.set(title="by layer", xlabel="rms over units", xlim=(0, None))
        profile.legend(frameon=False)
        axes[0].set_ylabel("layer (2 is the first with gates)")
        layers = size.groupby("layer").mean()
        return speak(figure, f"Classes {listed(classes)} use the gates most differently in layer {layers.idxmax()}: by "
                     f"{number(layers.max())} (rms over units), {number(layers.max() / layers.median())} times the "
                     "median layer.",
                     f"One trained highway net, {cell_in_words(by_class)}, on {data_of(by_class)}. A cell is a unit "
                     "of a layer; the signal goes down.")


def unit_map(ax: Axes, table: pd.DataFrame, title: str, colors: str, unit: str | None, low: float | None,
             high: float | None) -> QuadMesh:
    """Units across, layers down; with a colour bar under it where `unit` says what it counts."""
    image = ax.pcolormesh(table.columns, table.index, table, cmap=colors, vmin=low, vmax=high, rasterized=True)
    ax.set(title=title, xlabel="unit")
    ax.set_ylim(table.index.max() + 0.5, table.index.min() - 0.5)  # the signal goes down, as in the paper
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    if unit is not None:
        ax.figure.colorbar(image, ax=ax, location="bottom", aspect=25, pad=0.02, label=unit, ticks=MaxNLocator(4))
    return image


@takes(frame=check_frame)
def lesions(frame: pd.DataFrame) -> Figure:
    """Training error with one layer's gates closed, against that layer, a line per net; dashed: the intact net.

    Args:
        frame: from `run(measure="lesions")`.

    Returns:
        The Figure, its message above and its caption below.

    Source: Srivastava et al. 2015, figure 4.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        ax = figure.subplots()
        for (_, rows), dashes, color in zip(frame.groupby("cell", sort=False), ("-", "--", "-.", ":") * len(frame),
                                            [net_color("highway"), *CLASSES] * len(frame), strict=False):
            cut, intact = rows[rows["layer"] > 0], float(rows.loc[rows["layer"] == 0, "error"].iloc[0])
            ax.plot(cut["layer"], 100 * cut["error"], color=color, marker=".", lw=1.2, ls=dashes)
            ax.axhline(100 * intact, color=REFERENCE, ls=(0, (2, 2)), lw=1.2)
            label_end(ax, 100 * intact, f"intact: {number(100 * intact)} %", REFERENCE)
        cut = frame[frame["layer"] > 0]
        ax.set(xlabel="layer whose gates are closed (2 is the first with gates)", xlim=(1, cut["layer"].max() + 1),
               ylabel="error on the training set  [%]", ylim=(-0.04 * 100 * cut["error"].max(), None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        return speak(figure, lesions_in_words(frame),
                     f"{count(frame['cell'].nunique(), 'trained highway net')}, {cell_in_words(frame)}, on "
                     f"{data_of(frame)}. A mark: the share of all training samples that the net gets wrong when one "
                     "layer copies its input; it is exact, as all samples are counted, and says nothing of other "
                     "nets. Dashed: the intact net.")


def lesions_in_words(frame: pd.DataFrame) -> str:
    """A sentence: the layers that matter most, and the number of layers whose lesion adds less than 1 % of errors."""
    first = frame[frame["cell"] == frame["cell"].iloc[0]]
    cut = first[first["layer"] > 0].set_index("layer")["error"]
    worst = cut.nlargest(3)
    idle = int((cut < first.loc[first["layer"] == 0, "error"].iloc[0] + SLIGHT).sum())
    words = ", ".join(f"{number(100 * error)} % without layer {layer}" for layer, error in worst.items())
    return (f"The error rises to {words}; without any one of {idle} of the {len(cut)} layers it rises by less than "
            f"{number(100 * SLIGHT)} %.")


def cell_in_words(rows: pd.DataFrame) -> str:
    cell = rows.iloc[0]
    return f"{cell['depth']} layers, {cell['activation']}, gate bias {number(cell['gate_bias'])} at the start"
