"""Does a net stay as well conditioned as it started?  Spectra and gradients against the epoch."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import check_frame, takes

from .style import STYLE

ROWS = {  # statistic: label, whether the axis is logarithmic
    "relative_variance": ("relative variance\nof squared singular values", True),
    "log10_condition": ("log$_{10}$ condition number", False),
    "slope": ("Δ ln ‖∂L/∂h‖² per layer\ntowards the input", False),
}


@takes(statistics=check_frame)
def spectra_through_training(statistics: pd.DataFrame) -> Figure:
    """Spread of the Jacobian's squared singular values, its condition number, and the slope of the error signal against
    the epoch: a column a depth, a colour a kind of net, a thin line a net, a thick one their median; dashed what theory
    says of the start."""
    kinds = statistics[["net", "init", "gate_bias"]].drop_duplicates()
    depths = sorted(statistics["depth"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(depths) + 0.6, 6.6), layout="constrained")
        axes = figure.subplots(len(ROWS), len(depths), sharex=True, sharey="row", squeeze=False)
        for number, ((name, (label, is_log)), row) in enumerate(zip(ROWS.items(), axes, strict=True)):
            for ax, depth in zip(row, depths, strict=True):
                rows = statistics[(statistics["statistic"] == name) & (statistics["depth"] == depth)]
                for color, (_, kind) in zip(sns.color_palette("colorblind"), kinds.iterrows(), strict=False):
                    draw_kind(ax, of_kind(rows, kind), color, kind_label(kind))
                ax.set(title=f"depth {depth}" if number == 0 else "", yscale="log" if is_log else "linear")
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            row[0].set_ylabel(label)
        handles, words = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=len(words), frameon=False)
        axes[-1, len(depths) // 2].set_xlabel("epoch (dashed: theory at the start)")
    return figure


@takes(loss=check_frame)
def training_curves(loss: pd.DataFrame) -> Figure:
    """Training loss by epoch, a column a depth, a colour a kind of net, a line a net."""
    kinds = loss[["net", "init", "gate_bias"]].drop_duplicates()
    depths = sorted(loss["depth"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(depths) + 0.6, 3.2), layout="constrained")
        axes = figure.subplots(1, len(depths), sharex=True, sharey=True, squeeze=False)[0]
        for ax, depth in zip(axes, depths, strict=True):
            rows = loss[loss["depth"] == depth].rename(columns={"loss": "measured"}).assign(predicted=np.nan)
            for color, (_, kind) in zip(sns.color_palette("colorblind"), kinds.iterrows(), strict=False):
                draw_kind(ax, of_kind(rows, kind), color, kind_label(kind))
            ax.set(title=f"depth {depth}", yscale="log")
        axes[0].set_ylabel("training cross-entropy  [nats]")
        handles, words = axes[0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=len(words), frameon=False)
        axes[len(depths) // 2].set_xlabel("epoch")
    return figure


def draw_kind(ax: mpl.axes.Axes, rows: pd.DataFrame, color: tuple, label: str) -> None:
    for _, net in rows.groupby("cell", sort=False):
        ax.plot(net["epoch"], net["measured"], color=color, lw=0.6, alpha=0.5)
    median = rows.groupby("epoch")["measured"].median()
    ax.plot(median.index, median, color=color, lw=1.8, marker=".", label=label)
    predicted = rows["predicted"].dropna()
    if len(predicted) and np.isfinite(predicted.median()):
        ax.axhline(predicted.median(), color=color, ls="--", lw=0.9)


def of_kind(rows: pd.DataFrame, kind: pd.Series) -> pd.DataFrame:
    same = (rows["net"] == kind["net"]) & (rows["init"] == kind["init"])
    alike = rows["gate_bias"].isna() if pd.isna(kind["gate_bias"]) else rows["gate_bias"] == kind["gate_bias"]
    return rows[same & alike]


def kind_label(kind: pd.Series) -> str:
    words = f"{kind['net']}, {kind['init'].replace('_', ' ')}"
    return words if pd.isna(kind["gate_bias"]) else f"{words}, $b_T$ = {kind['gate_bias']:g}"
