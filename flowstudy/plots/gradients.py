"""Gradients of many nets: norms by layer, slopes by depth."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowstudy.arguments import NAME, check_frame, takes
from flowstudy.predictions.by_net import backward_slopes
from flowstudy.predictions.gradients import with_predicted_norms, with_predicted_slopes

from .style import (
    LABELS,
    STYLE,
    TEN_TO_NINETY,
    depth_axis,
    depth_colors,
    draw_prediction,
    finish,
    gap_in_words,
    grid_of_axes,
    legend,
    legend_below,
    line_styles,
    median_and_band,
    title_of,
    with_family,
)

THIN = {"color": "black", "lw": 0.7}


@takes(frame=check_frame, quantity=NAME)
def gradient_by_layer(frame: pd.DataFrame, quantity: str = "log10_error_signal_norm") -> Figure:
    """The norm of `quantity` against layer, a panel per initialiser or gate bias (and activation), a line per depth;
    dashed, what theory says of nets of the same last norm, and dotted, the band in which it has most nets; under the
    title, how far the deepest nets are from it where it is farthest from its start."""
    frame = with_family(with_predicted_norms(frame, quantity))
    panels = frame[["panel", "family"]].drop_duplicates()
    columns = 4 if frame["panel"].nunique() == 1 else frame["family"].nunique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), columns, height=2.5)
        colors = depth_colors(frame)
        for ax, (_, (panel, family)) in zip(axes, panels.iterrows(), strict=False):
            rows = frame[(frame["panel"] == panel) & (frame["family"] == family)]
            for depth, part in rows.groupby("depth"):
                median_and_band(ax, part, "layer", quantity, color=colors[depth])
                draw_predicted_layers(ax, part, band=bool(depth == rows["depth"].max()))
            ax.set_title(f"{title_of(panels, panel, family)}{farthest_in_words(rows, quantity)}", fontsize=9)
        finish(figure, axes, len(panels), f"layer (1 is next to the input){theory_in_words(frame)}", LABELS[quantity])
        legend(figure, {f"{depth}": color for depth, color in colors.items()}, frame)
    return figure


def draw_predicted_layers(ax: Axes, nets: pd.DataFrame, band: bool) -> None:
    middle = nets.groupby("layer")["predicted"].median()
    spread = nets.groupby("layer")["predicted_std"].first()
    draw_prediction(ax, middle, nets.groupby("layer")["valid"].first(), ls=(0, (2, 2)), **THIN)
    for side in (-1, 1) if band and spread.notna().any() else ():
        ax.plot(middle.index, middle + side * TEN_TO_NINETY * spread, ls=":", **THIN)


def farthest_in_words(nets: pd.DataFrame, quantity: str) -> str:
    known = nets[(nets["depth"] == nets["depth"].max()) & nets["valid"]]
    nearest = known[known["layer"] == known["layer"].min()]
    return f"\nlayer {nearest['layer'].iloc[0]}{gap_in_words(nearest, quantity)}" if len(nearest) else ""


def theory_in_words(frame: pd.DataFrame) -> str:
    known = frame[frame["predicted"].notna()]
    if known.empty:
        return ""
    dotted = "; dotted: 10-90 % band at the largest depth" if known["predicted_std"].notna().any() else ""
    beyond = "" if known["valid"].all() else "; one dotted line: beyond what theory covers"
    return f"; dashed: theory ({', '.join(known['law'].unique())}){dotted}{beyond}"


@takes(frame=check_frame)
def slope_by_depth(frame: pd.DataFrame) -> Figure:
    """Change of ln ||error signal||^2 per layer on the way back, against depth, a line per initialiser or gate bias;
    dashed what theory says, in the legend how far the deepest nets are from it."""
    slopes = with_family(with_predicted_slopes(backward_slopes(frame), frame))
    panels = slopes["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=4.0, width=4.6)
        for ax, panel in zip(axes, panels, strict=False):
            rows = slopes[slopes["panel"] == panel]
            for (family, part), style in zip(rows.groupby("family", sort=False), line_styles(), strict=False):
                label = f"{family}{gap_in_words(part[part['depth'] == part['depth'].max()], 'slope')}"
                median_and_band(ax, part, "depth", "slope", label=label, **style)
                theory = part.groupby("depth")[["predicted", "valid"]].first()
                draw_prediction(ax, theory["predicted"], theory["valid"], color=style["color"], lw=1)
            ax.axhline(0, color="0.3", lw=0.8)
            ax.set_title(panel)
            depth_axis(ax, rows["depth"])
            legend_below(ax)
        finish(figure, axes, len(panels), "depth (hidden layers)", "Δ ln ‖∂L/∂h‖² per layer towards the input")
        own = slopes["predicted"].ne(slopes["limit"]).any()
        figure.suptitle(f"dashed: theory {'as far as known at this width' if own else 'at infinite width'}\n"
                        "in brackets: mean less theory ± s.e. and z at the largest depth", fontsize=9)
    return figure


@takes(frame=check_frame)
def slope_gap_by_depth(frame: pd.DataFrame) -> Figure:
    """What finite width does: mean slope less its limit of infinite width, a mark per initialiser or gate bias with
    its standard error; black lines are the exact finite-width law, with its standard error for so many nets, dashed
    ones its first order in 1 / width."""
    slopes = with_family(with_predicted_slopes(backward_slopes(frame), frame))
    slopes["gap"] = slopes["slope"] - slopes["limit"]
    panels = slopes["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=3.4, width=4.6, share_y="row")
        for ax, panel in zip(axes, panels, strict=False):
            rows = slopes[slopes["panel"] == panel]
            families = rows.groupby("family", sort=False)
            places = np.linspace(-0.1, 0.1, max(len(families), 2))  # side by side, in ln depth
            for (family, part), style, place in zip(families, line_styles(), places, strict=False):
                gap = part.groupby("depth")["gap"].agg(["mean", "sem"])
                ax.errorbar(gap.index * np.exp(place), gap["mean"], gap["sem"], ls="", lw=1, label=family, **style)
                if part["predicted_std"].isna().all() and part["predicted"].ne(part["limit"]).any():
                    law = (part["predicted"] - part["limit"]).groupby(part["depth"]).first()
                    ax.plot(law.index, law, color=style["color"], ls="--", lw=1)
            draw_finite_width(ax, rows)
            ax.axhline(0, color="0.3", lw=0.8, ls="--")
            ax.set_title(f"{panel}, width {rows['width'].iloc[0]}")
            depth_axis(ax, rows["depth"])
            legend_below(ax)
        finish(figure, axes, len(panels), "depth (hidden layers)", "slope less its limit of infinite width ± s.e.")
        figure.suptitle("lines: theory at this width, black where exact, dashed to first order in 1 / width",
                        fontsize=9)
    return figure


def draw_finite_width(ax: Axes, slopes: pd.DataFrame) -> None:
    """A line and band for Gaussian weights, one for orthogonal ones."""
    exact = slopes[slopes["predicted_std"].notna()].assign(law=lambda rows: rows["predicted"] - rows["limit"])
    for orthogonal, rows in exact.groupby(exact["init"] == "orthogonal"):
        by_depth = rows.groupby("depth").agg(law=("law", "mean"), std=("predicted_std", "first"))
        error = by_depth["std"] / np.sqrt(rows.groupby(["depth", "family"]).size().groupby("depth").max())
        ax.plot(by_depth.index, by_depth["law"], color="black", lw=1, ls="-." if orthogonal else "-",
                label=f"exact, {'orthogonal' if orthogonal else 'Gaussian'}")
        ax.fill_between(by_depth.index, by_depth["law"] - error, by_depth["law"] + error, color="0.4", alpha=0.2, lw=0)
