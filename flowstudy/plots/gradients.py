"""Gradients of many nets: norms by layer, slopes by depth."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flowstudy.predictions import predicted_error_signal, with_predicted_slopes

from .style import (
    LABELS,
    STYLE,
    depth_axis,
    depth_colors,
    finish,
    grid_of_axes,
    legend,
    line_styles,
    median_and_band,
    title_of,
    with_family,
)


def gradient_by_layer(frame: pd.DataFrame, quantity: str = "log10_error_signal_norm") -> Figure:
    """The norm of `quantity` against layer, a panel per initialiser or gate bias (and activation), a line per depth;
    of the error signal, dashed, what infinitely wide nets of the same last norm would show."""
    frame = with_family(frame)
    panels = frame[["panel", "family"]].drop_duplicates()
    columns = 4 if frame["panel"].nunique() == 1 else frame["family"].nunique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), columns)
        colors = depth_colors(frame)
        for ax, (_, (panel, family)) in zip(axes, panels.iterrows(), strict=False):
            rows = frame[(frame["panel"] == panel) & (frame["family"] == family)]
            for depth, part in rows.groupby("depth"):
                median_and_band(ax, part, "layer", quantity, color=colors[depth])
                if quantity == "log10_error_signal_norm":
                    predicted = predicted_error_signal(part)
                    ax.plot(predicted.index, predicted, color="black", ls=(0, (2, 2)), lw=0.7)
            ax.set_title(title_of(panels, panel, family))
        words = " (dashed: theory, infinite width)" if quantity == "log10_error_signal_norm" else ""
        finish(figure, axes, len(panels), f"layer (1 is next to the input){words}", LABELS[quantity])
        legend(figure, {f"{depth}": color for depth, color in colors.items()}, frame)
    return figure


def slope_by_depth(frame: pd.DataFrame) -> Figure:
    """Change of ln ||error signal||^2 per layer on the way back, against depth, a line per initialiser or gate bias;
    dashed what infinitely wide nets would show, in the legend how far the deepest nets are from that."""
    slopes = with_family(with_predicted_slopes(backward_slopes(frame), frame))
    panels = slopes["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=3.7, width=4.6)
        for ax, panel in zip(axes, panels, strict=False):
            rows = slopes[slopes["panel"] == panel]
            for (family, part), style in zip(rows.groupby("family", sort=False), line_styles(), strict=False):
                median_and_band(ax, part, "depth", "slope", label=f"{family}{gap_in_words(part)}", **style)
                predicted = part.groupby("depth")["predicted"].first()
                ax.plot(predicted.index, predicted, color=style["color"], ls="--", lw=1)
            ax.axhline(0, color="0.3", lw=0.8)
            ax.set_title(panel)
            depth_axis(ax, rows["depth"])
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=7, frameon=False)
        finish(figure, axes, len(panels), "depth (hidden layers)", "Δ ln ‖∂L/∂h‖² per layer towards the input")
        figure.suptitle("dashed: theory at infinite width; in brackets: mean less theory ± s.e. at the largest depth",
                        fontsize=9)
    return figure


def gap_in_words(slopes: pd.DataFrame) -> str:
    """Mean slope less the prediction, with its standard error, of the deepest nets."""
    deepest = slopes[slopes["depth"] == slopes["depth"].max()]
    gap, error = (deepest["slope"] - deepest["predicted"]).mean(), deepest["slope"].sem()
    return f" ({gap:+.2g} ± {error:.1g})" if np.isfinite(gap) and np.isfinite(error) else ""


def backward_slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per net, `slope` the least-squares slope of ln ||error signal||^2 over the layers, towards the input."""
    norm = frame["log10_error_signal_norm"]
    log_square = 2 * math.log(10) * norm.where(np.isfinite(norm))
    rows = frame.assign(y=log_square, x=frame["layer"].where(log_square.notna()).astype(float))
    x, y = (rows[v] - rows.groupby("cell")[v].transform("mean") for v in ("x", "y"))
    sums = pd.DataFrame({"cell": rows["cell"], "xy": x * y, "xx": x * x}).groupby("cell", sort=False).sum()
    return frame.drop_duplicates("cell").assign(slope=lambda nets: nets["cell"].map(-sums["xy"] / sums["xx"]))
