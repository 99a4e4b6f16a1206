"""What single results draw of themselves: one model's gradient flow, its spectrum."""

import math
import textwrap

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import STYLE, widen

FLOAT32_NORMAL = math.log10(2.0**-126)  # below it float32 loses digits, and from 1.4e-45 on everything


def gradient_flow(frame: pd.DataFrame, title: str = "") -> Figure:
    """Norms of error signal and weight gradient, activation mean square and correlation of one model, or of several
    where the frame has a column `model`; `title` is the verdict."""
    models = frame.groupby(frame["model"] if "model" in frame else np.zeros(len(frame)), sort=False)
    norms = {"log10_error_signal_norm": ("∂L/∂h", "-"), "log10_weight_gradient_norm": ("∂L/∂W", ":")}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4 + 0.2 * title.count("\n")), layout="constrained")
        flow, size, angle = figure.subplots(1, 3, width_ratios=[1.6, 1, 1])
        for (name, rows), color in zip(models, sns.color_palette("colorblind", len(models)), strict=True):
            for column, (symbol, style) in norms.items():
                label = symbol if len(models) == 1 else f"{name}, {symbol}"
                norm_by_layer(flow, rows["layer"], rows[column], color=color, ls=style, label=label)
            known = rows[rows["activation_mean_square"] > 0]
            size.plot(known["layer"], known["activation_mean_square"], color=color, lw=1.5)
            angle.plot(rows["layer"], rows["activation_correlation"], color=color, lw=1.5)
        widen(flow, 2.0)
        if flow.get_ylim()[0] < FLOAT32_NORMAL:
            flow.axhspan(flow.get_ylim()[0], FLOAT32_NORMAL, color="0.92", zorder=0, label="lost in float32")
        flow.set(ylabel="log$_{10}$ norm of the gradient", title="gradient")
        flow.legend(loc="best")
        size.set(yscale="log", title="activation mean square")
        widen(size, 2.0)
        angle.set(ylim=(-1.05 if frame["activation_correlation"].min() < -0.05 else -0.05, 1.05),
                  title="correlation of two inputs")
        for ax in (flow, size, angle):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            ax.set_xlim(1 - 0.02 * frame["layer"].max(), 1.02 * frame["layer"].max())
        figure.supxlabel("layer, in order of execution", fontsize=10)
        figure.suptitle("\n".join(line for part in title.splitlines() for line in textwrap.wrap(part, 125)),
                        fontsize=9.5, x=0.01, ha="left")
    return figure


def spectrum(frame: pd.DataFrame, title: str = "") -> Figure:
    """log10 singular values by rank: every sample thin, their median thick, grey where the error is visible; values
    that are exactly 0, or lost in rounding, are counted in the legend.  `title` says the essentials."""
    values = frame.assign(log10_s=frame["log_singular_value"] / math.log(10), error=frame["log_error"] / math.log(10))
    known = values[np.isfinite(values["log10_s"])]
    samples = values["sample"].nunique()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        ax = figure.subplots()
        color = sns.color_palette("colorblind")[0]
        for _, rows in known.groupby("sample"):
            ax.plot(rows["rank"], rows["log10_s"], color=color, lw=0.7, alpha=0.35)
            ax.fill_between(rows["rank"], rows["log10_s"] - rows["error"], rows["log10_s"] + rows["error"], color="0.6",
                            alpha=0.3, lw=0)
        median = known.groupby("rank")["log10_s"].agg(["median", "size"])
        typical = median[median["size"] > samples / 2]["median"]  # a rank that most samples have
        ax.plot(typical.index, typical, color=color, lw=1.8, marker="." if len(typical) < 40 else "",
                label=f"median of {samples} samples" if samples > 1 else "one sample")
        for lost, words in (((values["log_singular_value"] == -math.inf).sum(), "exactly 0"),
                            (values["log_singular_value"].isna().sum(), "not known: below float64's rounding")):
            if lost:
                ax.plot([], [], " ", label=f"{lost / len(values):.0%} {words}")
        ax.set_xlim(0.5, values["rank"].max() + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        widen(ax, 1.0)
        ax.set(xlabel="rank (1 is the largest)", ylabel="log$_{10}$ singular value")
        ax.legend(loc="best")
        figure.suptitle(title, fontsize=8.5, x=0.01, ha="left")
    return figure


def norm_by_layer(ax: Axes, layers: pd.Series, norms: pd.Series, **style: object) -> None:
    """A line; layers where it is exactly 0 are crosses on the lower edge."""
    shown = np.isfinite(norms)
    ax.plot(layers[shown], norms[shown], lw=1.5, marker="." if len(layers) < 40 else "", **style)
    zero = layers[norms == -math.inf]
    ax.plot(zero, np.full(len(zero), 0.02), "x", color=style["color"], ms=5, transform=ax.get_xaxis_transform(),
            label=f"{style['label']} exactly 0" if len(zero) else None)
