"""Trained highway nets: how their gates route, and what they do without one layer."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import a_whole, check_frame, several, takes

from .style import STYLE

ROUTING = {  # column: title, colour map
    "trained_gate_bias": ("gate biases after training", "viridis"),
    "activity": ("mean gate activity", "magma"),
    "single_activity": ("gate activity, one sample", "magma"),
    "single_output": ("block outputs, one sample", "RdBu_r"),
}


@takes(routing=check_frame)
def gate_routing(routing: pd.DataFrame) -> Figure:
    """Gate biases, mean and single-sample gate activity, and block outputs of one net: units across, layers down.

    Source: Srivastava et al. 2015, figure 2.
    """
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        for ax, (column, (title, colors)) in zip(figure.subplots(1, 4, sharey=True), ROUTING.items(), strict=True):
            table = routing.pivot(index="layer", columns="unit", values=column)
            largest = float(np.nanmax(np.abs(table)))
            limits = {"trained_gate_bias": (None, None), "single_output": (-largest, largest)}.get(column, (0.0, 1.0))
            unit_map(ax, table, title, colors, *limits)
        figure.supylabel("layer (2 is the first highway layer)", fontsize=10)
    return figure


@takes(by_class=check_frame, classes=several(a_whole(0)))
def gate_routing_by_class(by_class: pd.DataFrame, classes: tuple[int, ...] = (0, 7)) -> Figure:
    """Mean gate activity of a class less that over all classes, a panel per class: units across, layers down.

    Source: Srivastava et al. 2015, figure 3.
    """
    rows = by_class[by_class["class"].isin(classes)]
    limit = float(rows["difference"].abs().max())
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.2 * len(classes) + 0.8, 3.6), layout="constrained")
        axes = figure.subplots(1, len(classes), sharey=True, squeeze=False)[0]
        for ax, label in zip(axes, classes, strict=True):
            table = rows[rows["class"] == label].pivot(index="layer", columns="unit", values="difference")
            title = f"class {label}: mean gate activity\nless that over all classes"
            unit_map(ax, table, title, "RdBu_r", -limit, limit)
        figure.supylabel("layer (2 is the first highway layer)", fontsize=10)
    return figure


def unit_map(ax: Axes, table: pd.DataFrame, title: str, colors: str, low: float | None, high: float | None) -> None:
    image = ax.pcolormesh(table.columns, table.index, table, cmap=colors, vmin=low, vmax=high, rasterized=True)
    ax.set(title=title, xlabel="unit")
    ax.set_ylim(table.index.max() + 0.5, table.index.min() - 0.5)  # the signal goes down, as in the paper
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.figure.colorbar(image, ax=ax, location="bottom", aspect=25, pad=0.02)


@takes(frame=check_frame)
def lesions(frame: pd.DataFrame) -> Figure:
    """Training error without one layer, against that layer; dashed the intact net.  A line a net.

    Source: Srivastava et al. 2015, figure 4.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 3.8), layout="constrained")
        ax = figure.subplots()
        for number, (_, rows) in enumerate(frame.groupby("cell", sort=False)):
            cut, intact = rows[rows["layer"] > 0], float(rows.loc[rows["layer"] == 0, "error"].iloc[0])
            color = f"C{number}"
            ax.plot(cut["layer"], 100 * cut["error"], color=color, marker=".", lw=1.2, label=f"{cell_in_words(rows)}")
            ax.axhline(100 * intact, color=color, ls="--", lw=1, label=f"intact: {100 * intact:.2g} %")
        ax.set(xlabel="layer whose gates are closed (2 is the first highway layer)",
               ylabel="error on the training set  [%]")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(loc="best")
    return figure


def cell_in_words(rows: pd.DataFrame) -> str:
    cell = rows.iloc[0]
    return f"depth {cell['depth']}, {cell['activation']}, $b_T$ = {cell['gate_bias']:g} at the start"
