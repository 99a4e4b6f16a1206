"""Highway nets beside their mean field: the recursion by layer, and spectra raw and relative to their mean square."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import check_frame, takes
from flowstudy.predictions import layer_gains
from flowstudy.predictions.body import SPECTRAL, WITHOUT, predictions_of, with_predicted_moments
from flowstudy.predictions.layers import has_mean_mode

from .message import capital, kinds_of, listed, nets_of, number, plain_words, power_of_ten, speak
from .style import (
    LABELS,
    STYLE,
    WIDTH,
    draw_prediction,
    gate_colors,
    median_and_band,
    net_color,
    with_family,
)

PANELS = {  # quantity: title, what is added before drawing, y scale
    "q": ("signal: mean square  $q$", 0.0, "log"),
    "c": ("cosine of two signals  $c$", 0.0, "linear"),
    "gradient_correlation": ("cosine of two gradients", 0.0, "linear"),
    "chi": ("mean squared gain of a layer  $χ$", 0.0, "linear"),
    "mean_squared": ("mean squared singular value  $m_1$", 0.0, "log"),
    "P": ("their relative variance  $P - 1$", -1.0, "log"),
}
COSINES = ("c", "gradient_correlation")
LOWEST = -12.0  # log10 of the smallest singular value that is drawn


@takes(frame=check_frame)
def highway_recursion(frame: pd.DataFrame) -> Figure:
    """Moments of signals and Jacobians against layer, a colour per gate bias and one for plain nets, a panel per
    quantity.

    Dots are means over nets with their standard errors, lines are theory at infinite width, thin and dotted where it
    does not cover the nets. Where activations have a mean, theory leaves out the largest singular value: full dots of
    m_1 and P - 1 are without it, hollow ones with it.

    Args:
        frame: from `run(measure="body_moments")`.

    Returns:
        The Figure, its message above and its caption below.
    """
    rows, lines = named(with_predicted_moments(frame)), named(predictions_of(frame))
    colors = family_colors(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
        for ax, (quantity, (title, shift, scale)) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
            for family, color in colors.items():
                draw_theory(ax, lines[lines["family"] == family], quantity, shift, color)
                draw_measured(ax, rows[rows["family"] == family], quantity, shift, color)
            ax.set(title=title, yscale=scale)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        marks = [Line2D([], [], color=color, marker="o", ms=4) for color in colors.values()]
        figure.legend(marks, colors, loc="outside right center", frameon=False)
        for ax in figure.axes[3:]:
            ax.set_xlabel("layer of the body")
        return speak(figure, kept_in_words(rows),
                     f"{capital(kinds_of(frame))} on {nets_of(frame)} of each kind, {schemes_of(frame)} weights, "
                     "before training; two inputs of mean square 1 and cosine 0.5. Dots: means over nets, bars: one "
                     "standard error. Lines: theory at infinite width, thin and dotted where it does not cover the "
                     f"nets.{hollow_in_words(rows)} {deviation(rows)}")


def schemes_of(frame: pd.DataFrame) -> str:
    return listed(LABELS["init"].get(name, name) for name in frame["init"].unique())


def kept_in_words(rows: pd.DataFrame) -> str:
    """At the last layer: the relative variance of squared singular values of each kind, theory's part of it."""
    last = rows[rows["layer"] == rows["layer"].max()]
    words = []
    for family, part in last.groupby("family", sort=False):
        variances = part[part["quantity"].isin(["P", "P" + WITHOUT])].set_index("quantity")
        covered = variances[variances["predicted"].notna()]
        if len(covered):
            words.append(f"{number(covered['measured'].iloc[0] - 1)} ({plain_words(family)})")
    if not words:
        return "Moments of signals and Jacobians by layer; theory has no number for these nets."
    return (f"After {rows['layer'].max()} layers the squared singular values of {rows['activation'].iloc[0]} nets "
            f"spread, relative to their mean, by a variance of {', '.join(words)}.")


def hollow_in_words(rows: pd.DataFrame) -> str:
    if not rows.loc[rows["quantity"].isin([name + WITHOUT for name in SPECTRAL]), "predicted"].notna().any():
        return ""
    return (" Hollow dots: with the largest singular value, the mean mode, which grows faster than all others and "
            "which theory leaves out; full dots are without it.")


def draw_theory(ax: Axes, lines: pd.DataFrame, quantity: str, shift: float, color: object) -> None:
    known = lines[lines["quantity"].isin([quantity, quantity + WITHOUT])].set_index("layer")
    draw_prediction(ax, known["predicted"] + shift, known["valid"], color=color, lw=1.2, ls="-")


def draw_measured(ax: Axes, rows: pd.DataFrame, quantity: str, shift: float, color: object) -> None:
    """Draw the measured dots: full where there is a prediction, else hollow."""
    for name in (quantity, quantity + WITHOUT):
        part = rows[rows["quantity"] == name]
        meant = part["predicted"].notna().any()
        if meant or name == quantity:
            ax.errorbar(part["layer"], part["measured"] + shift, part["standard_error"], color=color, ls="", marker="o",
                        ms=4, mfc=color if meant else "white", elinewidth=1)


def deviation(rows: pd.DataFrame) -> str:
    """The largest gaps of full dots from valid lines: absolute of cosines, of the others relative (of P, of P - 1)."""
    name = rows["quantity"].str.removesuffix(WITHOUT)
    part = rows[name.isin(PANELS) & rows["valid"]].assign(name=name)
    size = part["predicted"] + part["name"].map({key: shift for key, (_, shift, _) in PANELS.items()})
    gap = (part["measured"] - part["predicted"]).abs()
    cosine = part["name"].isin(COSINES)
    relative = (gap / size.abs())[~cosine].replace(math.inf, math.nan).max()
    return (f"Full dots are off their lines by {number(gap[cosine].max())} at most in cosines, by "
            f"{number(100 * relative)} % of the value in the others.")


def named(rows: pd.DataFrame) -> pd.DataFrame:
    rows = with_family(rows)
    return rows.assign(family=rows["family"].where(rows["gate_bias"].notna(), rows["net"] + ", " + rows["family"]))


def family_colors(rows: pd.DataFrame) -> dict[str, str]:
    gates = gate_colors(rows["gate_bias"])
    return {row.family: gates[row.gate_bias] if pd.notna(row.gate_bias) else net_color(row.net)
            for row in rows.drop_duplicates("family").itertuples()}


@takes(spectra=check_frame, flow=check_frame)
def highway_spectrum(spectra: pd.DataFrame, flow: pd.DataFrame) -> Figure:
    """Singular values of the body's Jacobian by rank: raw, and each Jacobian's divided by their root mean square.

    Dashed is the root mean square that theory predicts, from the measured mean square of the first layer. Where
    activations have a mean, it leaves out the largest singular value. The axes end at `LOWEST`: plain nets go far
    beyond, or to 0.

    Args:
        spectra: from `run(measure="jacobian_spectrum")`.
        flow: from `run(measure="gradient_flow")` of the same nets.

    Returns:
        The Figure, its message above and its caption below.
    """
    rows = named(with_relative(spectra))
    colors, sizes = family_colors(rows), []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        raw, relative = figure.subplots(1, 2, sharey=True)
        for family, color in colors.items():
            part = rows[rows["family"] == family]
            predicted = predicted_log10_rms(flow[flow["cell"].isin(part["cell"])])
            mean = (10 ** (2 * part["log10_rms"])).mean() ** 0.5
            sizes.append(f"{number(mean)} and {number(10**predicted)} ({plain_words(family)})")
            median_and_band(raw, part, "quantile", "log10_s", color=color)
            raw.axhline(predicted, color=color, ls="--", lw=1)
            median_and_band(relative, part, "quantile", "log10_relative", color=color)
        low = raw.get_ylim()[0]
        raw.set(title="raw: highway nets lie lower" if lower(rows) else "raw", ylabel="log$_{10}$ singular value",
                ylim=(max(low, LOWEST), None))
        relative.set(title="divided by their root mean square: shape alone")
        for ax in (raw, relative):
            ax.set(xlabel="rank / width (largest first)", xlim=(0, 1))
        handles = [Line2D([], [], color=color, lw=2) for color in colors.values()]
        figure.legend(handles, colors, loc="outside right center", frameon=False)
        stands_out = spectra.drop_duplicates("net").apply(has_mean_mode, axis=1).any()
        mode = (" The value at rank 1 of highway nets that stands out is the mean mode, the direction that all units "
                "share; the root mean squares leave it out." if stands_out else "")
        cut = f" The axis is cut at {power_of_ten(LOWEST)}; curves go on below." if low < LOWEST else ""
        return speak(figure, flatness_in_words(rows),
                     f"{capital(kinds_of(spectra))}, {spectra['depth'].iloc[0] - 1} layers, on {nets_of(spectra)} of "
                     "each kind, before training. Lines: medians over seeds and inputs; shaded: 10 to 90 %. Dashed: "
                     "the root mean square that theory predicts; measured and predicted: "
                     f"{'; '.join(sizes)}.{mode}{cut}")


def lower(rows: pd.DataFrame) -> bool:
    """Whether all highway nets have a smaller root mean square than all others."""
    gated = rows["gate_bias"].notna()
    return bool(rows.loc[gated, "log10_rms"].max() < rows.loc[~gated, "log10_rms"].min())


def flatness_in_words(rows: pd.DataFrame) -> str:
    """A sentence: the decades over which the middle half of the singular values spread, by kind of net."""
    words, lost = [], []
    for family, part in rows.groupby("family", sort=False):
        middle = part.groupby("quantile")["log10_s"].median()
        ends = middle.iloc[[len(middle) // 4, -1 - len(middle) // 4]]
        if np.isfinite(ends).all():
            words.append(f"{number(ends.iloc[0] - ends.iloc[1])} ({plain_words(family)})")
        else:
            lost.append(plain_words(family))
    nets = f"{rows['activation'].iloc[0]} nets"
    spans = f"The middle half of the singular values of {nets} spans, in decades, {', '.join(words)}" if words else ""
    gone = f"half or more of those of {listed(lost)} are exactly 0 or lost" if lost else ""
    sentence = "; ".join(filter(None, (spans, gone))) + "."
    return capital(sentence)


def with_relative(spectra: pd.DataFrame) -> pd.DataFrame:
    """`log10_s`, `log10_rms` of the singular values that theory speaks about, `log10_relative`, `quantile`."""
    log10_s = spectra["log_singular_value"] / math.log(10)
    frame = spectra.assign(log10_s=log10_s, quantile=(spectra["rank"] - 0.5) / spectra["width"])
    outlier = frame[["net", "activation"]].apply(has_mean_mode, axis=1) & (frame["rank"] == 1)
    squares = frame[~outlier].assign(square=lambda part: 10 ** (2 * part["log10_s"]))
    mean = squares.groupby(["cell", "sample"])["square"].mean()
    frame = frame.merge((np.log10(mean) / 2).rename("log10_rms").reset_index(), how="left", on=["cell", "sample"])
    return frame.assign(log10_relative=frame["log10_s"] - frame["log10_rms"])


def predicted_log10_rms(flow: pd.DataFrame) -> float:
    """log10 of the root mean square of the body's singular values, for one kind of net: half the sum of log10 chi."""
    cell = flow[flow["layer"] == 1].iloc[0].copy()
    for name in ("activation_mean_square", "activation_mean"):
        cell[name] = flow.loc[flow["layer"] == 1, name].median()
    return float(np.log10(layer_gains(cell)).sum() / 2)
