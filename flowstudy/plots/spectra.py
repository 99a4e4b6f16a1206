"""Spectra of many nets: by rank, by route, condition numbers, Lyapunov exponents."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flowstudy import theory

from .style import (
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


def spectrum_by_depth(frame: pd.DataFrame) -> Figure:
    """log10 singular values of the Jacobian by rank, a panel per family, a line per depth; a rank that most nets of a
    family lack is not drawn."""
    frame = with_family(frame)
    frame = frame.assign(
        quantile=(frame["rank"] - 0.5) / frame["width"],
        log10_s=frame["log_singular_value"] / math.log(10),
    )
    panels = frame[["panel", "family"]].drop_duplicates()
    columns = 4 if frame["panel"].nunique() == 1 else frame["family"].nunique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), columns)
        colors = depth_colors(frame)
        for ax, (_, (panel, family)) in zip(axes, panels.iterrows(), strict=False):
            rows = frame[(frame["panel"] == panel) & (frame["family"] == family)]
            for depth, part in rows.groupby("depth"):
                median_and_band(ax, part, "quantile", "log10_s", color=colors[depth])
            ax.set_title(title_of(panels, panel, family))
        finish(figure, axes, len(panels), "rank / width (largest first)", "log$_{10}$ singular value")
        legend(figure, {f"{depth}": color for depth, color in colors.items()}, frame)
    return figure


def condition_by_depth(frame: pd.DataFrame) -> Figure:
    """log10 of the ratio of the largest to the smallest non-zero singular value against depth."""
    by_sample = [name for name in frame.columns if name not in ("rank", "log_singular_value")]
    finite = frame[np.isfinite(frame["log_singular_value"])]
    spread = finite.groupby(by_sample, dropna=False, sort=False)["log_singular_value"].agg(np.ptp) / math.log(10)
    spread = with_family(spread.rename("log10_condition").reset_index())
    panels = spread["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=3.2, width=4.6)
        for ax, panel in zip(axes, panels, strict=False):
            rows = spread[spread["panel"] == panel]
            for (family, part), style in zip(rows.groupby("family", sort=False), line_styles(), strict=False):
                median_and_band(ax, part, "depth", "log10_condition", label=family, **style)
            ax.set(title=panel, yscale="log")
            depth_axis(ax, rows["depth"])
            ax.legend(loc="best")
        finish(figure, axes, len(panels), "depth (hidden layers)", "log$_{10}$ condition number (non-zero part)")
    return figure


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
