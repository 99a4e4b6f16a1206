"""A model's gradient flow, layer by layer, and several models' side by side."""

import math
import textwrap

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import NAME, check_frame, optional, takes
from flowstudy.plots.style import STYLE, widen

from .layer_axis import EXACTLY_0, MARKS, draw_marks, handles_of, mark_zeros, marks_of, name_layers

FLOAT32_NORMAL = math.log10(2.0**-126)  # below it float32 loses digits, and from 1.4e-45 on everything
ERROR, WEIGHT = "log10_error_signal_norm", "log10_weight_gradient_norm"


@takes(frame=check_frame, path=optional(check_frame), title=NAME)
def gradient_flow(frame: pd.DataFrame, path: pd.DataFrame | None = None, title: str = "") -> Figure:
    """Norms of error signals and weight gradients, mean squares and correlations of activations, by layer.

    Args:
        frame: `GradientFlow.frame`, or several models' with a column `model`.
        path: `GradientFlow.path`, drawn as a line; None draws every layer's own value.
        title: the verdict, or one for each model in lines.

    Returns:
        The Figure; of several models with a line for each.
    """
    several = "model" in frame and frame["model"].nunique() > 1
    return of_several(frame, title) if several else of_one(frame, frame if path is None else path, title)


def of_one(frame: pd.DataFrame, path: pd.DataFrame, title: str) -> Figure:
    marks = marks_of(frame["type"]) if "type" in frame else {}
    with mpl.rc_context(STYLE):
        figure = framed(title, height=6.2)
        axes = figure.subplot_mosaic([["error"] * 3, ["weight", "size", "angle"]], height_ratios=[1.25, 1])
        error, weight, size, angle = (axes[name] for name in ("error", "weight", "size", "angle"))
        draw_path(error, path)
        for ax, column in ((error, ERROR), (weight, WEIGHT), (size, "activation_mean_square"),
                           (angle, "activation_correlation")):
            known = frame if column != "activation_mean_square" else frame[frame[column] > 0]
            draw_marks(ax, known, column, marks)
        zeros = [mark_zeros(error, frame, ERROR), mark_zeros(weight, frame, WEIGHT)]
        error.set(title="error signal ‖∂L/∂h‖: from the loss (right) to the input (left)", ylabel="log$_{10}$ norm")
        weight.set(title="weight gradient ‖∂L/∂W‖", ylabel="log$_{10}$ norm")
        shaped(error, weight, size, angle, frame)
        error.set_xlabel("")
        name_layers(error, frame)
        for ax in (weight, size, angle):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        handles = handles_of(frame, marks)
        handles += [Line2D([], [], color="0.35", lw=1.3, label="main path")] if len(path) > 1 else []
        handles += [EXACTLY_0] if any(zeros) else []
        figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False)
    return figure


def of_several(frame: pd.DataFrame, title: str) -> Figure:
    """A line per model through all of its layers."""
    with mpl.rc_context(STYLE):
        figure = framed(title, height=3.9)
        flow, weight, size, angle = figure.subplots(1, 4)
        handles = []
        for (name, rows), (color, marker) in zip(frame.groupby("model", sort=False), MARKS * len(frame), strict=False):
            style = {"color": color, "lw": 1.4, "marker": marker if len(rows) < 40 else "", "ms": 3.5}
            for ax, column in ((flow, ERROR), (weight, WEIGHT), (size, "activation_mean_square"),
                               (angle, "activation_correlation")):
                known = rows[np.isfinite(rows[column]) & (rows[column] > (0 if ax is size else -math.inf))]
                ax.plot(known["layer"], known[column], **style)
            handles.append(Line2D([], [], label=name, **style))
        for ax, column in ((flow, ERROR), (weight, WEIGHT)):
            if mark_zeros(ax, frame, column):
                handles.append(EXACTLY_0)
        flow.set(title="error signal ‖∂L/∂h‖", ylabel="log$_{10}$ norm")
        weight.set(title="weight gradient ‖∂L/∂W‖")
        shaped(flow, weight, size, angle, frame)
        for ax in (flow, weight, size, angle):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        unique = {handle.get_label(): handle for handle in handles}
        figure.legend(handles=unique.values(), loc="outside lower center", ncols=min(5, len(unique)), frameon=False)
    return figure


def framed(title: str, height: float) -> Figure:
    """An empty figure as wide as a notebook, under its title."""
    lines = [line for part in title.splitlines() for line in textwrap.wrap(part, 118)]
    figure = Figure(figsize=(9.6, height + 0.19 * len(lines)), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=9.5, x=0.01, ha="left")
    return figure


def draw_path(ax: Axes, path: pd.DataFrame) -> None:
    known = path[np.isfinite(path[ERROR])]
    ax.plot(known["layer"], known[ERROR], color="0.35", lw=1.3, zorder=1)


def shaped(error: Axes, weight: Axes, size: Axes, angle: Axes, frame: pd.DataFrame) -> None:
    """Set the axes' ranges so that small fluctuations look small, and shade in grey the norms that float32 loses."""
    layers = frame["layer"]
    for ax in (error, weight):
        widen(ax, 2.0)
        low, high = ax.get_ylim()
        if low < FLOAT32_NORMAL:
            ax.axhspan(low, FLOAT32_NORMAL, color="0.92", zorder=0)
            ax.text(0.99, FLOAT32_NORMAL, "lost in float32 ", ha="right", va="top", fontsize=8, color="0.35",
                    transform=ax.get_yaxis_transform())
            ax.set_ylim(low, high)
    size.set(yscale="log", title="activation mean square")
    widen(size, 2.0)
    negative = frame["activation_correlation"].min() < -0.05
    angle.set(ylim=(-1.05 if negative else -0.05, 1.05), title="cosine of two inputs")
    for ax in (error, weight, size, angle):
        ax.set_xlim(layers.min() - 0.6, layers.max() + 0.6)
        ax.set_xlabel("layer", fontsize=9)
