"""Spectra of many nets: by rank, by route, condition numbers, Lyapunov exponents."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowstudy import theory
from flowstudy.arguments import NAME, check_frame, check_one_of, optional, takes
from flowstudy.predictions.by_net import with_predicted_conditions
from flowstudy.predictions.spectra import STATISTICS

from .style import (
    STYLE,
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


@takes(frame=check_frame, statistics=optional(check_frame))
def spectrum_by_depth(frame: pd.DataFrame, statistics: pd.DataFrame | None = None) -> Figure:
    """log10 singular values of the Jacobian by rank, a panel per family, a line per depth; a rank that most nets of a
    family lack is not drawn.

    Of a frame from `with_predicted_spectra`, dashed, the limit law of infinite width where it is known, thin and dotted
    where it is not quite that of such nets.  Given
    `statistics` from `with_predicted_statistics`: triangles, the exact mean rank of ReLU nets, and under the title how
    far the deepest nets are from theory.
    """
    frame = with_family(frame)
    frame = frame.assign(
        quantile=(frame["rank"] - 0.5) / frame["width"],
        log10_s=frame["log_singular_value"] / math.log(10),
        predicted=frame.get("predicted", np.nan) / math.log(10),
        valid=frame.get("valid", False),
    )
    statistics = None if statistics is None else with_family(statistics)
    panels = frame[["panel", "family"]].drop_duplicates()
    columns = 4 if frame["panel"].nunique() == 1 else frame["family"].nunique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), columns, height=2.3 if statistics is None else 2.5)
        colors = depth_colors(frame)
        for ax, (_, (panel, family)) in zip(axes, panels.iterrows(), strict=False):
            rows = frame[(frame["panel"] == panel) & (frame["family"] == family)]
            for depth, part in rows.groupby("depth"):
                median_and_band(ax, part, "quantile", "log10_s", color=colors[depth])
                law = part.groupby("quantile")[["predicted", "valid"]].first()
                draw_prediction(ax, law["predicted"], law["valid"], color="black", ls=(0, (2, 2)), lw=0.7)
            words = ""
            if statistics is not None:
                of_panel = statistics[(statistics["panel"] == panel) & (statistics["family"] == family)]
                mark_ranks(ax, of_panel, colors)
                words = deepest_in_words(of_panel)
            ax.set_title(f"{title_of(panels, panel, family)}{words}", fontsize=9)
        known = "; dashed: theory, infinite width" if frame["predicted"].notna().any() else ""
        beyond = frame["predicted"].notna() & ~frame["valid"].astype(bool)
        known += " (dotted: gates or slopes vary too much for it)" if beyond.any() else ""
        finish(figure, axes, len(panels), f"rank / width (largest first){known}", "log$_{10}$ singular value")
        legend(figure, {f"{depth}": color for depth, color in colors.items()}, frame)
    return figure


def mark_ranks(ax: Axes, statistics: pd.DataFrame, colors: dict[int, tuple]) -> None:
    ranks = statistics[(statistics["statistic"] == "rank") & statistics["predicted"].notna()]
    for depth, part in ranks[ranks["depth"].isin(colors)].groupby("depth"):
        ax.plot(part["predicted"].iloc[0] / part["width"].iloc[0], 0.04, "^", ms=5, color=colors[depth],
                transform=ax.get_xaxis_transform())


def deepest_in_words(statistics: pd.DataFrame) -> str:
    """Of the deepest nets: rank (where some singular values are 0) or mean ln s, measured less predicted."""
    deepest = statistics[statistics["depth"] == statistics["depth"].max()]
    lines = ""
    for statistic, name in (("rank", "▲ rank"), ("mean_log", "mean ln s")):
        words = gap_in_words(deepest[deepest["statistic"] == statistic], "measured")
        lines += f"\n{name}{words}" if words else ""
    return lines


@takes(statistics=check_frame, statistic=NAME)
def spectrum_statistic_by_depth(statistics: pd.DataFrame, statistic: str) -> Figure:
    """One number of each spectrum against depth, from `with_predicted_statistics` (logs per layer of the body), dashed
    what theory says, in the legend how far the shallowest nets are from it, whose width is largest beside depth."""
    check_one_of("spectrum_statistic_by_depth", "statistic", statistic, list(statistics["statistic"].unique()))
    rows = with_family(statistics[(statistics["statistic"] == statistic) & (statistics["depth"] > 1)])
    per_layer = statistic in ("mean_log", "log_mean_square")
    for name in ("measured", "predicted"):
        rows[name] = rows[name] / (rows["depth"] - 1 if per_layer else 1)
    rows = rows[rows.groupby("panel")["measured"].transform("count") > 0]
    panels = rows["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=3.6, width=4.6)
        for ax, panel in zip(axes, panels, strict=False):
            of_panel = rows[rows["panel"] == panel]
            for (family, part), style in zip(of_panel.groupby("family", sort=False), line_styles(), strict=False):
                label = f"{family}{gap_in_words(part[part['depth'] == part['depth'].min()], 'measured')}"
                median_and_band(ax, part, "depth", "measured", label=label, **style)
                draw_law(ax, part, style)
            ax.set(title=panel, yscale="log" if statistic == "relative_variance" else "linear")
            depth_axis(ax, of_panel["depth"])
            legend_below(ax)
        finish(figure, axes, len(panels), "depth (hidden layers)", STATISTICS[statistic] + ", per layer" * per_layer)
        figure.suptitle("dashed: theory, dotted where it does not cover the nets\nin brackets: mean less theory ± s.e. "
                        "and z at the smallest depth", fontsize=9)
    return figure


def draw_law(ax: Axes, nets: pd.DataFrame, style: dict) -> None:
    law = nets.groupby("depth")[["predicted", "valid"]].first()
    draw_prediction(ax, law["predicted"], law["valid"], color=style["color"], lw=1)


@takes(frame=check_frame)
def condition_by_depth(frame: pd.DataFrame) -> Figure:
    """log10 of the ratio of the largest to the smallest non-zero singular value against depth; of a frame from
    `with_predicted_spectra`, dashed, what the limit law of infinite width makes of it."""
    spread = with_family(with_predicted_conditions(frame))
    panels = spread["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=3.4, width=4.6)
        for ax, panel in zip(axes, panels, strict=False):
            rows = spread[spread["panel"] == panel]
            for (family, part), style in zip(rows.groupby("family", sort=False), line_styles(), strict=False):
                label = f"{family}{gap_in_words(part[part['depth'] == part['depth'].max()], 'log10_condition')}"
                median_and_band(ax, part, "depth", "log10_condition", label=label, **style)
                draw_law(ax, part, style)
            ax.set(title=panel, yscale="log")
            depth_axis(ax, rows["depth"])
            legend_below(ax)
        finish(figure, axes, len(panels), "depth (hidden layers)", "log$_{10}$ condition number (non-zero part)")
        if spread["predicted"].notna().any():
            figure.suptitle("dashed: theory at infinite width, where known; in brackets: mean less theory ± s.e. and z "
                            "at the largest depth", fontsize=9)
    return figure


@takes(frame=check_frame)
def spectrum_by_route(frame: pd.DataFrame) -> Figure:
    """All singular values of one net three ways: multiplied out in float32 and float64, and by the product route."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        ax = figure.subplots()
        labels = {"float32": "multiplied out, float32", "float64": "multiplied out, float64", "product": "flowstudy"}
        for (route, label), style in zip(labels.items(), line_styles(), strict=False):
            rows = frame[(frame["route"] == route) & np.isfinite(frame["log_singular_value"])]
            ax.plot(rows["rank"], rows["log_singular_value"] / math.log(10), label=label, lw=1.2, **style)
        cell = frame.iloc[0]
        ax.set(title=f"{cell['net']} {cell['activation']}, depth {cell['depth']}, width {cell['width']}",
               xlabel="rank (1 is the largest)", ylabel="log$_{10}$ singular value")
        ax.legend()
    return figure


@takes(frame=check_frame)
def lyapunov_exponents(frame: pd.DataFrame) -> Figure:
    """ln singular value per layer of linear Gaussian nets against rank, and Newman's exact limit of infinite depth.

    At finite depth the exponents have a bias, which the gap shows; their sum has none, and its z is the distance of
    the mean over nets from the exact value in exact standard errors.
    """
    layers = frame["depth"] - 1  # of the body
    frame = frame.assign(exponent=frame["log_singular_value"] / layers)
    width = int(frame["width"].iloc[0])
    limit = theory.lyapunov_exponents(width)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        ax = figure.subplots()
        for depth, color in depth_colors(frame).items():
            rows = frame[frame["depth"] == depth]
            gap = rows.groupby("rank")["exponent"].mean().to_numpy() - limit
            label = f"depth {depth}: rms gap {np.sqrt((gap**2).mean()):.2g}, sum z = {volume_z(rows, depth - 1):+.1f}"
            median_and_band(ax, rows, "rank", "exponent", color=color, label=label)
        error = np.sqrt(theory.lyapunov_variance(width) / (frame["depth"].max() - 1))
        ax.fill_between(range(1, width + 1), limit - error, limit + error, color="0.3", alpha=0.25, lw=0, zorder=3,
                        label=f"one net's exact standard deviation, depth {frame['depth'].max()}")
        ax.plot(range(1, width + 1), limit, color="black", ls="--", lw=1, label="Newman 1986, infinite depth")
        ax.set(title=f"linear Gaussian nets, width {width}", xlabel="rank (1 is the largest)",
               ylabel="ln singular value per layer  [nats]")
        ax.legend(fontsize=8)
    return figure


def volume_z(rows: pd.DataFrame, layers: int) -> float:
    """Mean over nets of the sum of log singular values, from its exact mean, in exact standard errors."""
    sums = rows.groupby(["cell", "sample"])["log_singular_value"].sum()
    mean, variance = theory.sum_log_singular_values(int(rows["width"].iloc[0]), layers)
    return float((sums.mean() - mean) / np.sqrt(variance / rows["cell"].nunique()))
