"""Gradients of many nets: norms by layer, slopes by depth."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowstudy.arguments import NAME, check_frame, takes
from flowstudy.predictions.by_net import backward_slopes
from flowstudy.predictions.gradients import with_predicted_norms, with_predicted_slopes

from .message import capital, kinds_of, listed, nets_of, number, plain_words, power_of_ten, speak
from .style import (
    BAND,
    LABELS,
    STYLE,
    TEN_TO_NINETY,
    depth_axis,
    depth_colors,
    draw_prediction,
    family_styles,
    finish,
    grid_of_axes,
    halo,
    label_end,
    median_and_band,
    title_of,
    widen,
    with_family,
)

ERROR = "log10_error_signal_norm"
INFINITE = "infinite width"  # as `with_predicted_norms` calls that law
THIN = {"color": "black", "lw": 0.9, "path_effects": halo(2.0)}


@takes(frame=check_frame, quantity=NAME)
def gradient_by_layer(frame: pd.DataFrame, quantity: str = ERROR) -> Figure:
    """The norm of `quantity` by place in the net: a panel per initialiser and a line per depth.

    If gate biases vary, there is a panel per activation and a line per bias instead, and only the deepest nets.
    Dashed: predicted from the last layer's norm.  Dotted: its 10-90 % band at the largest depth.  The caption gives
    measured less predicted at the first predicted layer.

    Args:
        frame: from `run(measure="gradient_flow")`.
        quantity: a column of log10 norms.

    Returns:
        The Figure, its message above and its caption below.
    """
    frame = with_family(with_predicted_norms(frame, quantity)).assign(place=lambda rows: rows["layer"] / rows["depth"])
    gated = frame["gate_bias"].nunique() > 1
    shown = frame[frame["depth"] == frame["depth"].max()] if gated else frame
    panels = frame[["panel"] if gated else ["panel", "family"]].drop_duplicates()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), 2, height=3.2 if gated else 2.0, share_y="row")
        colors = ({family: style["color"] for family, style in family_styles(frame).items()} if gated
                  else depth_colors(frame))
        for ax, (_, panel) in zip(axes, panels.iterrows(), strict=True):
            rows = shown[(shown[panel.index] == panel).all(axis=1)]
            for line, part in rows.groupby("family" if gated else "depth", sort=False):
                band = bool(part["depth"].max() == frame["depth"].max())
                median_and_band(ax, part, "place", quantity, color=colors[line], lw=2.6, band=band)
                draw_predicted_layers(ax, part, band=band)
            widen(ax, 2.0)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set(xlim=(0, 1), title=panel["panel"] if gated else title_of(panels, panel["panel"], panel["family"]))
        finish(axes, "layer / depth (0: the input, 1: the loss)", LABELS[quantity].replace("  [", "\n["))
        lines = [Line2D([], [], color=color, lw=2.6) for color in colors.values()]
        figure.legend(lines, colors.keys(), title="" if gated else "depth", loc="outside right center", frameon=False)
        return speak(figure, norms_in_words(frame, quantity), norms_caption(shown, quantity))


def draw_predicted_layers(ax: Axes, nets: pd.DataFrame, band: bool) -> None:
    middle = nets.groupby("place")["predicted"].median()
    spread = nets.groupby("place")["predicted_std"].first()
    draw_prediction(ax, middle, nets.groupby("place")["valid"].first(), ls=(0, (3, 2)), **THIN)
    for side in (-1, 1) if band and spread.notna().any() else ():
        ax.plot(middle.index, middle + side * TEN_TO_NINETY * spread, ls=":", **THIN)


def norms_in_words(frame: pd.DataFrame, quantity: str) -> str:
    """A sentence on the deepest nets: the norm's change from the last layer back to the first, or over layers 2..depth.
    """
    deepest = frame[frame["depth"] == frame["depth"].max()]
    depth, error = int(deepest["depth"].max()), quantity == ERROR
    changes = {}
    for (_, family), rows in deepest.groupby(["panel", "family"], sort=False):
        by_layer = rows.groupby("layer")[quantity].median().replace(-math.inf, np.nan)
        change = by_layer.iloc[0] - by_layer.iloc[-1] if error else by_layer.iloc[1:].max() - by_layer.iloc[1:].min()
        activation = rows["activation"].iloc[0]
        changes[f"{family}, {activation}" if deepest["panel"].nunique() > 1 else family] = change
    ends = sorted((change, plain_words(name)) for name, change in changes.items() if math.isfinite(change))
    if not ends:
        return f"No gradient is left to compare in nets of {depth} layers."
    factors = " to ".join(f"{power_of_ten(change)} ({name})" for change, name in (ends if len(ends) == 1
                                                                                  else (ends[0], ends[-1])))
    if error:
        return (f"From the last of {depth} layers back to the first, the error signal of {kinds_of(frame)} changes by "
                f"a factor of {factors}.")
    sizes = "about one size" if ends[-1][0] < 1 else "different sizes"
    return (f"The layers of {kinds_of(frame)} get weight gradients of {sizes}: from layer 2 to layer {depth} their "
            f"norm varies by a factor of {factors}.")


def norms_caption(frame: pd.DataFrame, quantity: str) -> str:
    known = frame[frame["predicted"].notna()]
    words = f"{capital(kinds_of(frame))} on {nets_of(frame)}, before training. Lines: medians over seeds; shaded: "
    words += f"10 to 90 % of the nets of {frame['depth'].max()} layers. Rows have scales of their own."
    if quantity != ERROR:
        words += " The first layer is the read-in, of another width, which sets its norm apart."
    if known.empty:
        return words
    words += f" Dashed black: theory from the last layer's norm on ({'; '.join(known['law'].unique())})"
    if known["predicted_std"].notna().any():
        words += "; dotted beside it: its 10 to 90 % band at the largest depth"
    words += "" if known["valid"].all() else "; a single dotted line: beyond what theory covers"
    narrow = " What finite width takes off is not in it." if (known["law"] == INFINITE).all() else ""
    return f"{words}.{narrow} {largest_gap(known, quantity)}"


def largest_gap(known: pd.DataFrame, quantity: str) -> str:
    """A sentence on the deepest nets: measured less predicted at the first predicted layer, where it is largest."""
    covered = known[known["valid"] & (known["depth"] == known["depth"].max())]
    rows = covered[covered["layer"] == covered.groupby("family")["layer"].transform("min")]
    rows = rows.assign(gap=(rows[quantity] - rows["predicted"]).replace([math.inf, -math.inf], np.nan))
    gaps = rows.groupby(["panel", "family"]).agg(gap=("gap", "mean"), z=("z", "first")).dropna()
    if gaps.empty or not (gaps["z"] != 0).all():
        return ""
    worst = gaps.loc[gaps["gap"].abs().idxmax()]
    return (f"Measured less theory at the first layer that it covers: {number(worst['gap'])} ± "
            f"{number(abs(worst['gap'] / worst['z']), 1)} (one standard error) where it is largest.")


@takes(frame=check_frame)
def slope_by_depth(frame: pd.DataFrame) -> Figure:
    """Change of ln ||error signal||^2 per layer towards the input, against depth; dashed: theory.

    Args:
        frame: from `run(measure="gradient_flow")`, with several depths.

    Returns:
        The Figure: a line per initialiser or gate bias, a panel per kind of net and activation.
    """
    slopes = with_family(with_predicted_slopes(backward_slopes(frame), frame))
    panels, styles = slopes["panel"].unique(), family_styles(slopes)
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), 2, height=3.0)
        for ax, panel in zip(axes, panels, strict=True):
            rows = slopes[slopes["panel"] == panel]
            families = rows.groupby("family", sort=False)
            places = np.exp(np.linspace(-0.08, 0.08, max(len(families), 2)))  # side by side
            for (family, part), place in zip(families, places, strict=False):
                draw_slopes(ax, part, family, place, styles[family])
            ax.axhline(0, color="0.3", lw=0.8)
            ax.set_title(panel)
            depth_axis(ax, rows["depth"])
        finish(axes, "depth (hidden layers)", "Δ ln ‖∂L/∂h‖² per layer\ntowards the input")
        own = "as far as known at this width" if slopes["predicted"].ne(slopes["limit"]).any() else "at infinite width"
        return speak(figure, slopes_in_words(slopes),
                     f"{capital(kinds_of(frame))} on {nets_of(frame)}, before training. Above 0 the gradient explodes "
                     "towards the input, below it vanishes. Marks: medians over seeds, side by side; bars: 10 to "
                     f"90 %. Dashed: theory {own}. {largest_slope_gap(slopes)}")


def draw_slopes(ax: Axes, nets: pd.DataFrame, family: str, place: float, style: dict) -> None:
    slope = nets.groupby("depth")["slope"]
    middle, low, high = slope.median(), slope.quantile(BAND[0]), slope.quantile(BAND[1])
    ax.errorbar(middle.index * place, middle, [middle - low, high - middle], lw=1.3, elinewidth=0.8, **style)
    theory = nets.groupby("depth")[["predicted", "valid"]].first()
    draw_prediction(ax, theory["predicted"], theory["valid"], color=style["color"], lw=1)
    label_end(ax, middle.iloc[-1], family, style["color"])


def slopes_in_words(slopes: pd.DataFrame) -> str:
    """A sentence on the deepest nets: the least and the largest change of the squared gradient per layer."""
    deepest = slopes[slopes["depth"] == slopes["depth"].max()]
    middle = deepest.groupby(["panel", "family"])["slope"].median().dropna()
    if middle.empty:
        return "No gradient is left to compare."
    words = [f"{number(100 * math.expm1(middle[kind]), 2)} % ({plain_words(kind[1])}, {kind[0]})"
             for kind in (middle.idxmin(), middle.abs().idxmin(), middle.idxmax())]
    return (f"At {deepest['depth'].max()} layers the squared gradient changes per layer by {words[0]} to {words[2]}; "
            f"nearest to 0 is {words[1]}.")


def largest_slope_gap(slopes: pd.DataFrame) -> str:
    """A sentence on the deepest nets: measured less predicted slope where it is largest in standard errors."""
    deepest = slopes[(slopes["depth"] == slopes["depth"].max()) & slopes["valid"]]
    gaps = deepest.assign(gap=deepest["slope"] - deepest["predicted"]).groupby(["panel", "family"]).agg(
        gap=("gap", "mean"), z=("z", "first")).dropna()
    gaps = gaps[gaps["z"] != 0]
    if gaps.empty:
        return ""
    worst = gaps.loc[gaps["z"].abs().idxmax()]
    return (f"Mean less theory at the largest depth: {number(worst['gap'])} ± "
            f"{number(abs(worst['gap'] / worst['z']), 1)} (one standard error), z = {number(worst['z'])} of them, "
            "where z is largest.")


@takes(frame=check_frame)
def slope_gap_by_depth(frame: pd.DataFrame) -> Figure:
    """The effect of finite width: mean slope of ln ||error signal||^2 less its infinite-width limit, against depth.

    Bars are standard errors.  Normal and uniform initialisers of one author share a mark, since they obey one law.
    Solid black lines: the exact finite-width law, with the standard error of as many nets in grey.  Dashed lines: the
    first order in 1 / width.

    Args:
        frame: from `run(measure="gradient_flow")`, with several depths.

    Returns:
        The Figure: a panel per kind of net and activation.
    """
    slopes = with_family(with_predicted_slopes(backward_slopes(frame), frame))
    slopes["gap"] = slopes["slope"] - slopes["limit"]
    slopes["law"] = slopes["family"].str.replace(r" normal| uniform| \(.*\)", "", regex=True)
    panels, styles = slopes["panel"].unique(), family_styles(slopes)
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), 2, height=3.0, share_y="row")
        for ax, panel in zip(axes, panels, strict=True):
            rows = slopes[slopes["panel"] == panel]
            families = rows.groupby("law", sort=False)
            places = np.exp(np.linspace(-0.1, 0.1, max(len(families), 2)))  # side by side
            for (family, part), place in zip(families, places, strict=False):
                draw_gap(ax, part, family, place, styles[part["family"].iloc[0]])
            draw_finite_width(ax, rows)
            ax.axhline(0, color="0.3", lw=0.8)
            ax.set_title(panel)
            depth_axis(ax, rows["depth"])
        finish(axes, "depth (hidden layers)", "slope less its limit\nof infinite width")
        return speak(figure, gap_in_a_sentence(slopes),
                     f"{capital(kinds_of(frame))} on {nets_of(frame)}. Slope: Δ ln ‖∂L/∂h‖² per layer towards the "
                     "input; 0 is what infinite width predicts; rows have scales of their own. Marks: means over "
                     "seeds, side by side; bars: one standard error. Black lines: the exact law of this width (solid "
                     "Gaussian, dash-dotted orthogonal weights), grey: one standard error of so many nets; dashed: "
                     "theory to first order in 1 / width.")


def draw_gap(ax: Axes, nets: pd.DataFrame, family: str, place: float, style: dict) -> None:
    gap = nets.groupby("depth")["gap"].agg(["mean", "sem"])
    ax.errorbar(gap.index * place, gap["mean"], gap["sem"].fillna(0), ls="", lw=1, label=family, **style)
    if nets["predicted_std"].isna().all() and nets["predicted"].ne(nets["limit"]).any():
        law = (nets["predicted"] - nets["limit"]).groupby(nets["depth"]).first()
        ax.plot(law.index, law, color=style["color"], ls="--", lw=1)
    label_end(ax, gap["mean"].iloc[-1], family, style["color"])


def draw_finite_width(ax: Axes, slopes: pd.DataFrame) -> None:
    """Draw the exact finite-width law as a line with a band, for Gaussian and for orthogonal weights."""
    exact = slopes[slopes["predicted_std"].notna()].assign(law=lambda rows: rows["predicted"] - rows["limit"])
    for orthogonal, rows in exact.groupby(exact["init"] == "orthogonal"):
        by_depth = rows.groupby("depth").agg(law=("law", "mean"), std=("predicted_std", "first"))
        error = by_depth["std"] / np.sqrt(rows.groupby(["depth", "family"]).size().groupby("depth").max())
        ax.plot(by_depth.index, by_depth["law"], color="black", lw=1, ls="-." if orthogonal else "-",
                label=f"exact, {'orthogonal' if orthogonal else 'Gaussian'}")
        ax.fill_between(by_depth.index, by_depth["law"] - error, by_depth["law"] + error, color="0.4", alpha=0.2, lw=0)


def gap_in_a_sentence(slopes: pd.DataFrame) -> str:
    """A sentence on the deepest nets: the effect of finite width where the law is exact, else the largest gap."""
    deepest = slopes[slopes["depth"] == slopes["depth"].max()]
    exact = deepest[deepest["predicted_std"].notna() & (deepest["init"] != "orthogonal")]
    where = f"at {deepest['depth'].max()} layers of width {listed(sorted(deepest['width'].unique()))}"
    if len(exact):
        panel = exact[exact["panel"] == exact["panel"].iloc[0]]
        law = (panel["predicted"] - panel["limit"]).mean()
        return (f"Finite width takes {number(-panel['gap'].mean())} per layer more from the squared gradient of "
                f"{panel['panel'].iloc[0]} nets {where}; the exact law says {number(-law)}.")
    gaps = deepest.groupby(["panel", "family"])["gap"].mean().dropna()
    largest = number(gaps[gaps.abs().idxmax()]) if len(gaps) else "no number"
    return f"The slope {where} differs from its limit of infinite width by {largest} where it differs most."
