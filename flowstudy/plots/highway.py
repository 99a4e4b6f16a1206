"""Highway nets beside their mean field: the recursion by layer, and spectra raw and relative to their mean square."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import check_frame, takes
from flowstudy.predictions import layer_gains
from flowstudy.predictions.body import KIND, WITHOUT, predictions_of, with_predicted_moments
from flowstudy.predictions.layers import has_mean_mode

from .style import LABELS, STYLE, draw_prediction, median_and_band, with_family

PANELS = {  # quantity: title, what is added before drawing, y scale
    "q": ("signal: mean square  $q$", 0.0, "log"),
    "c": ("cosine of two signals  $c$", 0.0, "linear"),
    "gradient_correlation": ("cosine of two gradients", 0.0, "linear"),
    "chi": ("a layer's mean squared gain  $χ$", 0.0, "linear"),
    "mean_squared": ("mean squared singular value  $m_1$", 0.0, "log"),
    "P": ("their relative variance  $P - 1$", -1.0, "log"),
}
COSINES = ("c", "gradient_correlation")
LOWEST = -12.0  # log10 of a singular value


@takes(frame=check_frame)
def highway_recursion(frame: pd.DataFrame) -> Figure:
    """Moments of signals and Jacobians against layer, a colour per gate bias (plain nets grey), a panel per quantity.

    Dots are means over nets with their standard errors, lines are theory at infinite width, thin and dotted where it
    does not cover the nets. Where activations have a mean, theory leaves out the largest singular value: full dots of
    m_1 and P - 1 are without it, hollow ones with it. The legend has the largest gap between full dots and valid lines
    over layers and panels, and the median |z|.
    """
    rows, lines = named(with_predicted_moments(frame)), named(predictions_of(frame))
    colors = family_colors(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        for ax, (quantity, (title, shift, scale)) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
            for family, color in colors.items():
                draw_theory(ax, lines[lines["family"] == family], quantity, shift, color)
                draw_measured(ax, rows[rows["family"] == family], quantity, shift, color)
            ax.set(title=title, yscale=scale)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        entries = {f"{family}: {deviation(rows[rows['family'] == family])}": color for family, color in colors.items()}
        marks = [Line2D([], [], color=color, marker="o", ms=4) for color in entries.values()]
        figure.legend(marks, entries.keys(), loc="outside lower center", ncols=2, frameon=False)
        for ax in figure.axes[3:]:
            ax.set_xlabel("layer of the body")
        cell = frame.iloc[0]
        figure.suptitle(f"{cell['activation']}, {LABELS['init'].get(cell['init'], cell['init'])}, width "
                        f"{cell['width']}, {rows.groupby(KIND, dropna=False).ngroups} kinds of net, "
                        f"{frame['seed'].nunique()} nets each: measured (dots) and theory (lines)")
    return figure


def draw_theory(ax: Axes, lines: pd.DataFrame, quantity: str, shift: float, color: object) -> None:
    known = lines[lines["quantity"].isin([quantity, quantity + WITHOUT])].set_index("layer")
    draw_prediction(ax, known["predicted"] + shift, known["valid"], color=color, lw=1.2, ls="-")


def draw_measured(ax: Axes, rows: pd.DataFrame, quantity: str, shift: float, color: object) -> None:
    """Full where there is a prediction, hollow else; without the largest singular value only where that is meant."""
    for name in (quantity, quantity + WITHOUT):
        part = rows[rows["quantity"] == name]
        meant = part["predicted"].notna().any()
        if meant or name == quantity:
            ax.errorbar(part["layer"], part["measured"] + shift, part["standard_error"], color=color, ls="", marker="o",
                        ms=4, mfc=color if meant else "none", elinewidth=1)


def deviation(part: pd.DataFrame) -> str:
    """The largest gap, relative (of P, of P - 1; of cosines absolute), and the median |z|."""
    name = part["quantity"].str.removesuffix(WITHOUT)
    part = part[name.isin(PANELS) & part["valid"]].assign(name=name)
    size = part["predicted"] + part["name"].map({key: shift for key, (_, shift, _) in PANELS.items()})
    gap = (part["measured"] - part["predicted"]) / size.where(~part["name"].isin(COSINES), 1.0)
    return f"gap ≤ {100 * gap.abs().max():.2g} %, median |z| {part['z'].abs().median():.1f}"


def named(rows: pd.DataFrame) -> pd.DataFrame:
    rows = with_family(rows)
    return rows.assign(family=rows["family"].where(rows["gate_bias"].notna(), rows["net"] + ", " + rows["family"]))


def family_colors(rows: pd.DataFrame) -> dict[str, object]:
    gated = rows.loc[rows["gate_bias"].notna(), "family"].unique()
    others = rows.loc[rows["gate_bias"].isna(), "family"].unique()
    return dict(zip(gated, sns.color_palette("viridis", len(gated) + 1), strict=False)) | dict.fromkeys(others, "0.45")


@takes(spectra=check_frame, flow=check_frame)
def highway_spectrum(spectra: pd.DataFrame, flow: pd.DataFrame) -> Figure:
    """Singular values of the body's Jacobian by rank: raw, and each Jacobian's divided by their root mean square.

    Dashed is the root mean square that theory predicts, from the measured mean square of the first layer (`flow`: the
    same nets' gradient flow); the legend compares it with the measured one. Where activations have a mean, both leave
    out the largest singular value. The axes end at `LOWEST`: plain nets go far beyond, or to 0.
    """
    rows = named(with_relative(spectra))
    colors = family_colors(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        raw, relative = figure.subplots(1, 2, sharey=True)
        for family, color in colors.items():
            part = rows[rows["family"] == family]
            predicted = predicted_log10_rms(flow[flow["cell"].isin(part["cell"])])
            mean = (10 ** (2 * part["log10_rms"])).mean() ** 0.5
            median_and_band(raw, part, "quantile", "log10_s", color=color,
                            label=f"{family}: rms {mean:.2g}, theory {10**predicted:.2g}")
            raw.axhline(predicted, color=color, ls="--", lw=1)
            median_and_band(relative, part, "quantile", "log10_relative", color=color)
        cell = spectra.iloc[0]
        raw.set(title="raw", ylabel="log$_{10}$ singular value", ylim=(max(raw.get_ylim()[0], LOWEST), None))
        relative.set(title="divided by their root mean square")
        for ax in (raw, relative):
            ax.set_xlabel("rank / width (largest first)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(f"{cell['activation']}, {cell['depth'] - 1} layers of width {cell['width']}, at initialisation")
    return figure


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
    """Of the body's singular values, one kind of net: half the sum of log10 chi."""
    cell = flow[flow["layer"] == 1].iloc[0].copy()
    for name in ("activation_mean_square", "activation_mean"):
        cell[name] = flow.loc[flow["layer"] == 1, name].median()
    return float(np.log10(layer_gains(cell)).sum() / 2)
