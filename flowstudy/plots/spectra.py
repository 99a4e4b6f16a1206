"""Spectra of many nets: by rank, by route, condition numbers, Lyapunov exponents."""

import math
import textwrap

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import ColorType

from flowstudy import theory
from flowstudy.arguments import NAME, check_frame, check_one_of, optional, takes
from flowstudy.predictions.by_net import with_predicted_conditions
from flowstudy.predictions.spectra import STATISTICS

from .message import capital, count, kinds_of, nets_of, number, plain_words, power_of_ten, speak
from .style import (
    BAND,
    REFERENCE,
    ROUTES,
    STYLE,
    WIDTH,
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
    with_family,
)

BY_DEPTH = "Lines: medians over seeds and inputs; shaded: 10 to 90 %."
ROUTE_LABELS = {"float32": ("multiplied out, float32", "s"), "float64": ("multiplied out, float64", "D"),
                "product": ("flowstudy", "o")}


@takes(frame=check_frame, statistics=optional(check_frame))
def spectrum_by_depth(frame: pd.DataFrame, statistics: pd.DataFrame | None = None) -> Figure:
    """log10 singular values of the Jacobian by rank: a panel per initialiser and a line per depth.

    If gate biases vary, there is a panel per activation and a line per bias instead, and only the deepest nets.  A rank
    that most nets of a family lack is not drawn.  Dashed: the infinite-width law where it is known, dotted where it is
    only close to that of such nets.  Triangles: the exact mean rank of ReLU nets.

    Args:
        frame: from `run(measure="jacobian_spectrum")`, or from `with_predicted_spectra`, which adds the law.
        statistics: from `with_predicted_statistics`, for the triangles.

    Returns:
        The Figure, its message above and its caption below.
    """
    frame = with_family(frame)
    frame = frame.assign(
        quantile=(frame["rank"] - 0.5) / frame["width"],
        log10_s=frame["log_singular_value"] / math.log(10),
        predicted=frame.get("predicted", np.nan) / math.log(10),
        valid=frame.get("valid", False),
    )
    gated = frame["gate_bias"].nunique() > 1
    shown = frame[frame["depth"] == frame["depth"].max()] if gated else frame
    panels = frame[["panel"] if gated else ["panel", "family"]].drop_duplicates()
    colors = ({family: style["color"] for family, style in family_styles(frame).items()} if gated
              else depth_colors(frame))
    ranks = exact_ranks(statistics)
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), 2, height=3.0 if gated else 2.6)
        for ax, (_, panel) in zip(axes, panels.iterrows(), strict=True):
            rows = shown[(shown[panel.index] == panel).all(axis=1)]
            for line, part in rows.groupby("family" if gated else "depth", sort=False):
                draw_spectrum(ax, part, colors[line], ranks)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.set_xlim(0, widest(frame, ranks))
            ax.set_title(panel["panel"] if gated else title_of(panels, panel["panel"], panel["family"]))
        finish(axes, "rank / width (largest first)", "log$_{10}$ singular value")
        lines = [Line2D([], [], color=color, lw=2) for color in colors.values()]
        figure.legend(lines, colors.keys(), title="" if gated else "depth", loc="outside right center", frameon=False)
        return speak(figure, spectra_in_words(frame), spectra_caption(shown, ranks))


def widest(frame: pd.DataFrame, ranks: dict) -> float:
    """The last rank on the axis: the last that most nets of a kind have, or theory's mean rank."""
    kinds = [frame[name] for name in ("panel", "family", "depth", "quantile")]
    kept = np.isfinite(frame["log10_s"]).groupby(kinds).mean()
    most = kept[kept > 1 - BAND[0]].index.get_level_values("quantile").max()
    exact = max(ranks.values(), default=0.0) / frame["width"].max() if len(kept[kept <= 0.5]) else 0.0
    return min(1.0, 1.05 * max(most, exact)) if max(most, exact) > 0 else 1.0


def draw_spectrum(ax: Axes, nets: pd.DataFrame, color: ColorType, ranks: dict) -> None:
    median_and_band(ax, nets, "quantile", "log10_s", color=color)
    law = nets.groupby("quantile")[["predicted", "valid"]].first()
    draw_prediction(ax, law["predicted"], law["valid"], color="black", ls=(0, (3, 2)), lw=0.9)
    one = nets.iloc[0]
    rank = ranks.get((one["panel"], one["family"], one["depth"]))
    if rank is not None:
        ax.plot(rank / one["width"], 0.04, "^", ms=6, color=color, transform=ax.get_xaxis_transform())


def exact_ranks(statistics: pd.DataFrame | None) -> dict[tuple, float]:
    """The mean rank that theory has of each kind of net, by panel, family and depth."""
    if statistics is None:
        return {}
    rows = with_family(statistics[(statistics["statistic"] == "rank") & statistics["predicted"].notna()])
    return rows.groupby(["panel", "family", "depth"])["predicted"].first().to_dict()


def spectra_in_words(frame: pd.DataFrame) -> str:
    """A sentence on the deepest nets: the fewest and the most decades over which the middle 80 % of ranks spread."""
    deepest = frame[frame["depth"] == frame["depth"].max()]
    spreads = {}
    for (_, family), rows in deepest.groupby(["panel", "family"], sort=False):
        middle = rows.groupby("quantile")["log10_s"].median()
        kept = middle[np.isfinite(middle)]
        if len(kept) > 1:
            spreads[f"{family}, {rows['activation'].iloc[0]}" if deepest["panel"].nunique() > 1 else family] = np.ptp(
                np.interp([0.1, 0.9], kept.index, kept)) if len(kept) == len(middle) else math.inf
    where = f"of {kinds_of(frame)} of {deepest['depth'].max()} layers"
    known = {name: spread for name, spread in spreads.items() if math.isfinite(spread)}
    lost = f"; {count(len(spreads) - len(known), 'kind')} lose rank" if len(known) < len(spreads) else ""
    if not known:
        kept = np.isfinite(deepest["log10_s"]).mean()
        return f"Only {number(100 * kept)} % of the singular values {where} are not exactly 0."
    least, most = min(known, key=known.get), max(known, key=known.get)
    words = [f"{number(known[name])} ({plain_words(name)})" for name in dict.fromkeys([least, most])]
    return f"Eight tenths of the singular values {where} lie within {' to '.join(words)} decades{lost}."


def spectra_caption(frame: pd.DataFrame, ranks: dict) -> str:
    words = f"Jacobian of the body of {kinds_of(frame)} on {nets_of(frame)}, before training. {BY_DEPTH}"
    if frame["gate_bias"].nunique() > 1:
        words += f" All nets have {frame['depth'].max()} layers."
    known = frame["predicted"].notna()
    if known.any():
        words += (" Dashed black: theory at infinite width, of all but the largest value of ReLU nets, the mean mode, "
                  "which stands out")
        words += "; dotted: gates or slopes vary too much for it." if not frame.loc[known, "valid"].all() else "."
    if any(kind[:2] in set(zip(frame["panel"], frame["family"], strict=True)) for kind in ranks):
        words += " Triangles: the exact mean rank; curves end where most nets have no singular value left."
    return words


@takes(statistics=check_frame, statistic=NAME)
def spectrum_statistic_by_depth(statistics: pd.DataFrame, statistic: str) -> Figure:
    """One statistic of each spectrum against depth, logs divided by the body's layers; dashed: theory.

    Args:
        statistics: from `with_predicted_statistics`.
        statistic: a value of its column `statistic`.

    Returns:
        The Figure: a panel per kind of net, a line per initialiser or gate bias.
    """
    check_one_of("spectrum_statistic_by_depth", "statistic", statistic, list(statistics["statistic"].unique()))
    rows = with_family(statistics[(statistics["statistic"] == statistic) & (statistics["depth"] > 1)])
    per_layer = statistic in ("mean_log", "log_mean_square")
    for name in ("measured", "predicted"):
        rows[name] = rows[name] / (rows["depth"] - 1 if per_layer else 1)
    rows = rows[rows.groupby("panel")["measured"].transform("count") > 0]
    variance = statistic == "relative_variance"
    with mpl.rc_context(STYLE):
        name = STATISTICS[statistic].partition(",")[0]
        label = textwrap.fill(name, 24) + "\nper layer" * per_layer
        figure, axes = lines_by_depth(rows, "measured", label, log=variance)
        for ax in axes if variance else ():
            most = rows["width"].max() - 1
            ax.axhline(most, color=REFERENCE, lw=1, ls=":")
            label_end(ax, most, f"most: width - 1 = {most}", REFERENCE)
        rank = " ReLU nets that lose rank have no mean of ln s, and no panel." if statistic == "mean_log" else ""
        narrow = (" Of plain nets theory is of infinite width; at this width the typical net lies below it."
                  if statistic == "log_mean_square" and (rows["net"] == "plain").any() else "")
        most_of = " Where depth nears the width the variance saturates." if variance else ""
        return speak(figure, statistic_in_words(rows, "measured", name + " per layer" * per_layer),
                     f"{capital(kinds_of(rows))} on {nets_of(rows)}, before training; s: singular values of the body's "
                     f"Jacobian. {BY_DEPTH} Dashed: theory, dotted on where it does not cover the nets."
                     f"{rank}{narrow}{most_of} "
                     f"{distance_in_words(rows, 'measured')}")


def lines_by_depth(rows: pd.DataFrame, y: str, label: str, *, log: bool = False,
                   share_y: bool | str = True) -> tuple[Figure, list[Axes]]:
    """A panel per kind of net, a line per initialiser or gate bias, named at its end."""
    panels, styles = rows["panel"].unique(), family_styles(rows)
    figure, axes = grid_of_axes(len(panels), 3 if len(panels) == 3 else 2, height=2.9, share_y=share_y)
    for ax, panel in zip(axes, panels, strict=True):
        of_panel = rows[rows["panel"] == panel]
        for family, part in of_panel.groupby("family", sort=False):
            median_and_band(ax, part, "depth", y, **styles[family])
            law = part.groupby("depth")[["predicted", "valid"]].first()
            draw_prediction(ax, law["predicted"], law["valid"], color=styles[family]["color"], lw=1)
            middle = part.groupby("depth")[y].median().dropna()
            if len(middle):
                label_end(ax, middle.iloc[-1], family, styles[family]["color"])
        ax.set(title=panel, yscale="log" if log else "linear")
        depth_axis(ax, of_panel["depth"])
    finish(axes, "depth (hidden layers)", label)
    return figure, axes


def statistic_in_words(rows: pd.DataFrame, y: str, name: str) -> str:
    """A sentence on the deepest nets: the least and the largest value of the statistic."""
    deepest = rows[rows["depth"] == rows["depth"].max()]
    middle = deepest.groupby(["panel", "family"])[y].median().replace([math.inf, -math.inf], np.nan).dropna()
    if middle.empty:
        return f"No net has a finite {plain_words(name)}."
    ends = [f"{number(middle[kind])} ({plain_words(kind[1])}, {kind[0]})"
            for kind in (middle.idxmin(), middle.idxmax())]
    return f"At {deepest['depth'].max()} layers the {plain_words(name)} is {ends[0]} at least and {ends[1]} at most."


def distance_in_words(rows: pd.DataFrame, y: str) -> str:
    """The median distance from theory over the kinds of net that it covers, in standard errors."""
    covered = rows[rows["valid"].astype(bool) & rows["predicted"].notna()]
    z = covered.groupby(["panel", "family", "depth"])["z"].first().replace([math.inf, -math.inf], np.nan).dropna().abs()
    return f"Mean less theory, in standard errors: median {number(z.median())} over {len(z)} points." if len(z) else ""


@takes(frame=check_frame)
def condition_by_depth(frame: pd.DataFrame) -> Figure:
    """The condition number, largest over smallest non-zero singular value, against depth; dashed: infinite width.

    Args:
        frame: from `run(measure="jacobian_spectrum")`, or from `with_predicted_spectra`, which adds the prediction.

    Returns:
        The Figure: a panel per kind of net, a line per initialiser or gate bias.
    """
    spread = with_family(with_predicted_conditions(frame))
    with mpl.rc_context(STYLE):
        figure, axes = lines_by_depth(spread, "log10_condition", "condition number", share_y=False)
        for ax in axes:
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:.0f}}}$"))
            ax.set_ylim(bottom=0)
        deepest = spread[spread["depth"] == spread["depth"].max()]
        middle = deepest.groupby(["panel", "family"])["log10_condition"].median().dropna()
        ends = [f"{power_of_ten(middle[kind])} ({plain_words(kind[1])}, {kind[0]})"
                for kind in ((middle.idxmin(), middle.idxmax()) if len(middle) else ())]
        known = (" Dashed: the limit law of infinite width where it is known: highway nets and orthogonal ones."
                 if spread["predicted"].notna().any() else "")
        return speak(figure, f"At {spread['depth'].max()} layers the condition number is {' to '.join(ends)}.",
                     f"{capital(kinds_of(spread))} on {nets_of(spread)}, before training. Largest over smallest "
                     "singular value of the body's Jacobian that is not 0 (ReLU nets lose rank, and with it the "
                     f"smallest). Every panel has an axis of its own. {BY_DEPTH}{known} "
                     f"{distance_in_words(spread, 'log10_condition')}")


@takes(frame=check_frame)
def spectrum_by_route(frame: pd.DataFrame) -> Figure:
    """All singular values of one net by three routes: multiplied out in float32, in float64, and by the product route.

    Args:
        frame: from `run(measure="spectrum_by_route")`.

    Returns:
        The Figure: log10 singular value by rank, a line per route.
    """
    finite = frame[np.isfinite(frame["log_singular_value"])].assign(
        log10_s=lambda rows: rows["log_singular_value"] / math.log(10))
    cell, ends = frame.iloc[0], finite.groupby("route")["log10_s"].min()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        ax = figure.subplots()
        for route, (words, marker) in ROUTE_LABELS.items():
            rows, color = finite[finite["route"] == route], ROUTES[route]
            ax.plot(rows["rank"], rows["log10_s"], lw=1.2, color=color, marker=marker, ms=4)
            if len(rows):
                label_end(ax, rows["log10_s"].iloc[-1],
                          words + ("" if route == "product" else "\n(flat: rounding noise)"), color)
        ax.set(xlabel="rank (1 is the largest)", ylabel="log$_{10}$ singular value", xlim=(1, frame["rank"].max()))
        return speak(figure, f"Multiplying {count(cell['depth'], 'layer')} out loses what lies below rounding: the "
                             "smallest "
                     f"singular value is {power_of_ten(ends.get('product', math.nan))}, and float64 says "
                     f"{power_of_ten(ends.get('float64', math.nan))}, float32 "
                     f"{power_of_ten(ends.get('float32', math.nan))}.",
                     f"One {cell['net']} {cell['activation']} net of {count(cell['depth'], 'layer')}, width "
                     f"{cell['width']}, one seed: every mark is a singular value of its Jacobian, by three routes.")


@takes(frame=check_frame)
def lyapunov_exponents(frame: pd.DataFrame) -> Figure:
    """ln singular value per layer of linear Gaussian nets against rank, and Newman's exact limit of infinite depth.

    Args:
        frame: from `run(measure="jacobian_spectrum")` of plain linear nets with Gaussian weights.

    Returns:
        The Figure: a line per depth.
    """
    layers = frame["depth"] - 1  # of the body
    frame = frame.assign(exponent=frame["log_singular_value"] / layers)
    width, deepest = int(frame["width"].iloc[0]), int(frame["depth"].max())
    limit = theory.lyapunov_exponents(width)
    gaps = frame.groupby(["depth", "rank"])["exponent"].mean().unstack() - limit
    rms = np.sqrt((gaps**2).mean(axis=1))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        ax = figure.subplots()
        for depth, color in depth_colors(frame).items():
            rows = frame[frame["depth"] == depth]
            median_and_band(ax, rows, "rank", "exponent", color=color)
        error = np.sqrt(theory.lyapunov_variance(width) / (deepest - 1))
        ax.fill_between(range(1, width + 1), limit - error, limit + error, color="0.3", alpha=0.25, lw=0, zorder=3)
        ax.plot(range(1, width + 1), limit, color="black", ls="--", lw=1.2, path_effects=halo(2.4))
        ax.set(xlabel="rank (1 is the largest)", ylabel="ln singular value per layer  [nats]", xlim=(1, width))
        colors = depth_colors(frame)
        figure.legend([Line2D([], [], color=color, lw=2) for color in colors.values()], colors, title="depth",
                      loc="outside right center", frameon=False)
        sums = "; ".join(f"{number(volume_z(rows, depth - 1))} at {depth}" for depth, rows in frame.groupby("depth"))
        return speak(figure, "The growth rates of linear Gaussian nets near their exact limit as depth grows: the rms "
                             "gap "
                     f"falls from {number(rms.iloc[0])} at {rms.index[0]} layers to {number(rms.iloc[-1])} at "
                     f"{deepest}.",
                     f"Linear nets of width {width}, Gaussian weights, {count(frame['seed'].nunique(), 'seed')} a "
                     "depth. Lines: medians over seeds; coloured bands: 10 to 90 %. Dashed black: the limit of "
                     f"infinite depth (Newman 1986); grey: one net's exact standard deviation at {deepest} layers. "
                     "The rates' sum has no bias; its mean less the exact value, in exact standard errors, by depth: "
                     f"{sums}.")


def volume_z(rows: pd.DataFrame, layers: int) -> float:
    """Mean over nets of the sum of log singular values, from its exact mean, in exact standard errors."""
    sums = rows.groupby(["cell", "sample"])["log_singular_value"].sum()
    mean, variance = theory.sum_log_singular_values(int(rows["width"].iloc[0]), layers)
    return float((sums.mean() - mean) / np.sqrt(variance / rows["cell"].nunique()))
