"""Shattered gradients: how alike the input gradients of two inputs are, by angle and by depth."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from flowstudy.arguments import a_real, check_frame, takes
from flowstudy.predictions.shattering import with_predicted_correlations

from .style import STYLE, depth_axis, depth_colors, grid_of_axes, line_styles

FLOOR = 2e-3  # of the logarithmic axis: some standard errors of twenty nets
ERRORS = {"capsize": 2, "lw": 1.3, "ms": 4}
DASHED = {"ls": (0, (4, 2)), "lw": 1}


@takes(frame=check_frame, angle=a_real())
def gradient_correlation(frame: pd.DataFrame, angle: float = 45.0) -> Figure:
    """Correlation of the input gradients ("centred" read-out) against the angle between the inputs, a panel per kind of
    net, a colour per depth; dashed theory, in the legend how far off it is at `angle` [degrees]."""
    found = with_predicted_correlations(frame[frame["readout"] == "centred"]).assign(kind=kind_in_words)
    colors, kinds = depth_colors(found), found["kind"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(kinds), 3, height=2.9, width=3.4)
        for ax, kind in zip(axes, kinds, strict=False):
            for depth, rows in found[found["kind"] == kind].groupby("depth"):
                degrees = np.degrees(rows["angle"])
                at = rows.iloc[(degrees - angle).abs().argmin()]
                ax.errorbar(degrees, rows["measured"], rows["standard_error"].fillna(0), color=colors[depth], fmt="o",
                            label=f"L = {depth}{gap_of_row(at)}", **ERRORS)
                ax.plot(degrees, rows["predicted"], color=colors[depth], **DASHED)
            ax.set(title=kind, xscale="log", ylim=(-0.6, 1.05), yticks=[0, 0.25, 0.5, 0.75, 1])
            ax.set_xticks([3, 10, 30, 90, 180], ["3°", "10°", "30°", "90°", "180°"])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.legend(loc="lower center", ncols=2, fontsize=6.5, frameon=False, handletextpad=0.0, columnspacing=0.5)
        for ax in axes[len(kinds):]:
            ax.set_axis_off()
        figure.supxlabel("angle between the inputs", fontsize=10)
        figure.supylabel("correlation of the input gradients", fontsize=10)
        figure.suptitle("dashed: theory, infinite width; in brackets: measured less theory ± s.e. "
                        f"at {angle:g}°", fontsize=9)
    return figure


@takes(frame=check_frame, angle=a_real())
def gradient_correlation_by_depth(frame: pd.DataFrame, angle: float = 45.0) -> Figure:
    """The same at one angle [degrees] against depth, a line per kind of net, and beside it the last hidden outputs'.

    Dashed theory; dotted what independent masks would give (Balduzzi et al. 2017); hollow the read-out as it is.
    """
    found = with_predicted_correlations(frame).assign(kind=kind_in_words)
    nearest = found["lag"].loc[(np.degrees(found["angle"]) - angle).abs().idxmin()]
    found = found[found["lag"] == nearest]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 4.4), layout="constrained")
        gradients, hidden = figure.subplots(1, 2)
        for (kind, rows), style in zip(found.groupby("kind", sort=False), line_styles(), strict=False):
            lines_by_depth(gradients, hidden, kind, rows, style)
        for ax, title in ((gradients, "input gradients"), (hidden, "last hidden outputs")):
            depth_axis(ax, found["depth"])
            ax.set(title=title, xlabel="depth (hidden layers)")
        gradients.set(yscale="log", ylim=(FLOOR, 1.1), ylabel=f"correlation at {angle:g}°")
        hidden.set(ylim=(min(0.5, *found["hidden"]), 1.02))
        figure.legend(*hidden.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False,
                      title="gradients of the deepest nets:\nmeasured less theory ± s.e.", title_fontsize=8)
        figure.suptitle("dashed: theory, infinite width; dotted: were masks independent; hollow: read-out not centred",
                        fontsize=9)
    return figure


def lines_by_depth(gradients: Axes, hidden: Axes, kind: str, rows: pd.DataFrame, style: dict) -> None:
    color, centred = style["color"], rows[rows["readout"] == "centred"]
    for readout, part in rows.groupby("readout"):
        filled = color if readout == "centred" else "none"
        gradients.errorbar(part["depth"], part["measured"], part["standard_error"].fillna(0), color=color,
                           fmt=style["marker"], mfc=filled, **ERRORS)
    gradients.plot(centred["depth"], centred["predicted"], color=color, **DASHED)
    gradients.plot(centred["depth"], centred["independent"], color=color, ls=":", lw=1.2)
    label = kind + gap_of_row(centred.loc[centred["depth"].idxmax()])
    hidden.plot(centred["depth"], centred["hidden"], color=color, ls="none", marker=style["marker"], ms=4, label=label)
    hidden.plot(centred["depth"], centred["predicted_hidden"], color=color, **DASHED)


@takes(frame=check_frame)
def gradient_around_circle(frame: pd.DataFrame) -> Figure:
    """The gradient itself along the circle, in units of its root mean square, a panel per kind and depth of net: of the
    first seed.  After Balduzzi et al. 2017, figure 1."""
    one = frame[frame["seed"] == frame["seed"].min()].assign(kind=kind_in_words)
    nets = one.groupby(["kind", "depth"], sort=False)
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(nets.ngroups, 2, height=1.5, width=4.4)
        for ax, ((kind, depth), rows) in zip(axes, nets, strict=False):
            ax.plot(np.degrees(rows["angle"]), rows["gradient"], color="0.2", lw=0.9)
            ax.set(title=f"{kind}, depth {depth}", xlim=(0, 360))
            ax.set_xticks(range(0, 361, 90), [f"{d}°" for d in range(0, 361, 90)])
        for ax in axes[nets.ngroups:]:
            ax.set_axis_off()
        figure.supxlabel("place on a circle of inputs", fontsize=10)
        figure.supylabel("gradient along the circle / its rms", fontsize=10)
    return figure


def gap_of_row(row: pd.Series) -> str:
    known = np.isfinite([row["gap"], row["standard_error"]]).all()
    return f"  ({row['gap']:+.3f} ± {row['standard_error']:.3f})" if known else ""


def kind_in_words(rows: pd.DataFrame) -> pd.Series:
    gates = rows["gate_bias"].map(lambda bias: "" if pd.isna(bias) else f", $b_T$ = {bias:g}")
    return rows["net"] + " " + rows["activation"] + gates
