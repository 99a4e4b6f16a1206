"""Shattered gradients: how alike the input gradients of two inputs are, by angle and by depth."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from flowstudy.arguments import a_real, check_frame, takes
from flowstudy.predictions.shattering import with_predicted_correlations

from .message import MINUS, nets_of, number, plain_words, speak
from .style import (
    GATES,
    NETS,
    OTHER,
    REFERENCE,
    STYLE,
    WIDTH,
    depth_axis,
    depth_colors,
    grid_of_axes,
    label_end,
)

ERRORS = {"capsize": 2, "lw": 1.3, "ms": 4}
DASHED = {"ls": (0, (4, 2)), "lw": 1}
MARKERS = {"relu": "o", "tanh": "s"}  # by activation; others: a triangle
READ_OUT = "The read-out has no component along the mean of the hidden outputs"


@takes(frame=check_frame)
def gradient_correlation(frame: pd.DataFrame) -> Figure:
    """Correlation of the input gradients ("centred" read-out) against the angle between the inputs; dashed: theory.

    Args:
        frame: from `run(measure="gradient_correlation")`.

    Returns:
        The Figure: a panel per kind of net, a colour per depth.
    """
    found = with_predicted_correlations(frame[frame["readout"] == "centred"]).assign(kind=kind_in_words)
    colors, kinds = depth_colors(found), found["kind"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(kinds), 3, height=2.6)
        for ax, kind in zip(axes, kinds, strict=True):
            for depth, rows in found[found["kind"] == kind].groupby("depth"):
                degrees = np.degrees(rows["angle"])
                ax.errorbar(degrees, rows["measured"], rows["standard_error"].fillna(0), color=colors[depth], fmt="o",
                            **ERRORS)
                ax.plot(degrees, rows["predicted"], color=colors[depth], **DASHED)
            lowest = min(0.0, *(found["measured"] - 2 * found["standard_error"].fillna(0)))
            ax.set(title=kind, xscale="log", ylim=(lowest - 0.03, 1.05), yticks=[0, 0.25, 0.5, 0.75, 1],
                   xlabel="angle between the inputs" if kind in kinds[-3:] else "")
            ax.set_xticks([3, 10, 30, 90, 180], ["3°", "10°", "30°", "90°", "180°"])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.axhline(0, color="0.5", lw=0.8)
        for ax in axes[::3]:
            ax.set_ylabel("correlation of gradients")
        handles = [Line2D([], [], ls="", marker="o", color=color) for color in colors.values()]
        figure.legend(handles, colors.keys(), title="depth", loc="outside right center", frameon=False)
        return speak(figure, alike_in_words(found, float(np.degrees(found["angle"].min())), ends=True),
                     f"Input gradients before training, {nets_of(frame)} a point. Marks: means over seeds; bars: one "
                     f"standard error. Dashed: theory at infinite width. {READ_OUT}. "
                     f"{farthest_in_words(found)}")


@takes(frame=check_frame, angle=a_real())
def gradient_correlation_by_depth(frame: pd.DataFrame, angle: float = 45.0) -> Figure:
    """Correlation of the input gradients at one angle against depth, and beside it that of the last hidden outputs.

    Dashed: theory.  Dotted: the correlation if masks were independent (Balduzzi et al. 2017).  Hollow: gradients of the
    read-out as it is, not centred.

    Args:
        frame: from `run(measure="gradient_correlation")`.
        angle: between the two inputs [degrees].

    Returns:
        The Figure: a line per kind of net.
    """
    found = with_predicted_correlations(frame).assign(kind=kind_in_words)
    nearest = found["lag"].loc[(np.degrees(found["angle"]) - angle).abs().idxmin()]
    found = found[found["lag"] == nearest]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        gradients, hidden = figure.subplots(1, 2, sharey=True)
        for kind, rows in found.groupby("kind", sort=False):
            lines_of_kind(gradients, hidden, kind, rows, kind_style(rows.iloc[0]))
        for ax, title in ((gradients, "input gradients"), (hidden, "last hidden outputs")):
            depth_axis(ax, found["depth"])
            ax.set(title=title, xlabel="depth (hidden layers)")
        low = min(0.0, *found["measured"] - found["standard_error"].fillna(0), *found["hidden"])
        gradients.set(ylim=(low - 0.03, 1.03), ylabel=f"correlation at {angle:g}°")
        return speak(figure, alike_in_words(found[found["readout"] == "centred"], angle),
                     f"Two inputs {angle:g}° apart, before training, {nets_of(frame)} a point. Full marks: means over "
                     "seeds of a read-out without its component along the mean of the hidden outputs; hollow: of the "
                     "read-out as it is; bars: one standard error. Dashed: theory at infinite width; dotted: what "
                     f"independent masks would give (Balduzzi et al. 2017). {farthest_in_words(found)}")


def lines_of_kind(gradients: Axes, hidden: Axes, kind: str, rows: pd.DataFrame, style: dict) -> None:
    color, centred = style["color"], rows[rows["readout"] == "centred"]
    for readout, part in rows.groupby("readout"):
        filled = color if readout == "centred" else "white"
        gradients.errorbar(part["depth"], part["measured"], part["standard_error"].fillna(0), color=color,
                           fmt=style["marker"], mfc=filled, **ERRORS)
    gradients.plot(centred["depth"], centred["predicted"], color=color, **DASHED)
    gradients.plot(centred["depth"], centred["independent"], color=color, ls=":", lw=1.2)
    hidden.plot(centred["depth"], centred["hidden"], color=color, ls="none", marker=style["marker"], ms=4)
    hidden.plot(centred["depth"], centred["predicted_hidden"], color=color, **DASHED)
    deepest = centred.loc[centred["depth"].idxmax()]
    label_end(gradients, deepest["measured"], kind, color)
    label_end(hidden, deepest["hidden"], kind, color)


def kind_style(cell: pd.Series) -> dict:
    """The colour of the kind of net, of highway nets the darker the more closed; a marker for its activation."""
    gated = pd.notna(cell["gate_bias"])
    color = GATES(min(-float(cell["gate_bias"]), 6.0) / 6.0) if gated else NETS.get(cell["net"], OTHER)
    return {"color": color, "marker": MARKERS.get(cell["activation"], "^")}


@takes(frame=check_frame)
def gradient_around_circle(frame: pd.DataFrame) -> Figure:
    """The gradient along the circle in units of its root mean square, for the first seed; white and brown noise below.

    Args:
        frame: from `run(measure="gradient_around_circle")`.

    Returns:
        The Figure: a panel per kind and depth of net.

    Source: after Balduzzi et al. 2017, figure 1.
    """
    one = frame[frame["seed"] == frame["seed"].min()].assign(kind=kind_in_words)
    curves = {f"{kind}, depth {depth}": (rows["angle"].to_numpy(), rows["gradient"].to_numpy(),
                                         kind_style(rows.iloc[0])["color"])
              for (kind, depth), rows in one.groupby(["kind", "depth"], sort=False)}
    angle = next(iter(curves.values()))[0]
    curves |= {f"for comparison: {name} noise": (angle, drawn, REFERENCE)
               for name, drawn in noises(len(angle)).items()}
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(curves), 2, height=1.4)
        for ax, (title, (place, gradient, color)) in zip(axes, curves.items(), strict=True):
            ax.plot(np.degrees(place), gradient, color=color, lw=1.0)
            ax.set(title=title, xlim=(0, 360))
            ax.set_xticks(range(0, 361, 90), [f"{d}°" for d in range(0, 361, 90)])
        for ax in axes[-2:]:
            ax.set_xlabel("place on a circle of inputs")
        for ax in axes[::2]:
            ax.set_ylabel("gradient / rms")
        alike = {name: neighbours(gradient) for name, (_, gradient, _) in curves.items()}
        words = [f"{alike[name]:.2f} ({plain_words(name)})" for name in list(alike)[:-2]]
        step = 360 / len(angle)
        return speak(figure, f"Gradients at inputs {number(step)}° apart correlate by {', '.join(words)}.",
                     f"The gradient along a circle of inputs through two images, one net a panel, {nets_of(one)}, "
                     "before training, in units of its root mean square. Neighbouring points of white noise correlate "
                     f"by {alike[list(alike)[-2]]:.2f}, those of a random walk (brown noise) by "
                     f"{alike[list(alike)[-1]]:.2f}.")


def noises(points: int) -> dict[str, np.ndarray]:
    """White noise and, closed to a circle, its running sum, each of mean 0 and mean square 1."""
    white = np.random.default_rng(0).standard_normal(points)
    walk = np.cumsum(white - white.mean())
    return {name: (x - x.mean()) / x.std() for name, x in (("white", white), ("brown", walk))}


def neighbours(gradient: np.ndarray) -> float:
    """The correlation of a curve round the circle with itself one point on."""
    centred = gradient - gradient.mean()
    return float(centred @ np.roll(centred, 1) / (centred @ centred))


def alike_in_words(found: pd.DataFrame, angle: float, *, ends: bool = False) -> str:
    """The gradient correlations of the deepest nets at the angle by kind, in increasing order, or only both `ends`."""
    at = found[found["lag"] == found["lag"].loc[(np.degrees(found["angle"]) - angle).abs().idxmin()]]
    deepest = at[at["depth"] == at["depth"].max()].set_index("kind")["measured"].dropna().sort_values()
    words = [f"{round(value, 2) + 0.0:.2f} ({plain_words(kind)})".replace("-", MINUS)
             for kind, value in deepest.items()]
    between = f"{words[0]} to {words[-1]}" if ends else ", ".join(words)
    degrees = number(float(np.degrees(at["angle"].iloc[0])))
    return f"At {at['depth'].max()} layers the gradients of two inputs {degrees}° apart correlate by {between}."


def farthest_in_words(found: pd.DataFrame) -> str:
    """How far theory is off at most, over kinds and depths, of the centred read-out."""
    gaps = found.loc[found["readout"] == "centred", "gap"].abs().replace(np.inf, np.nan).dropna()
    return f"Measured less theory: {number(gaps.max())} at most." if len(gaps) else ""


def kind_in_words(rows: pd.DataFrame) -> pd.Series:
    gates = rows["gate_bias"].map(lambda bias: "" if pd.isna(bias) else f", $b_T$ = {bias:g}")
    return rows["net"] + " " + rows["activation"] + gates
