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

NAMED_LAYERS = 24  # names on the axis at most
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


def trainability(frame: pd.DataFrame, path: pd.DataFrame, curve: pd.DataFrame, trial: pd.DataFrame | None,
                 constant_loss: float, title: str = "") -> Figure:
    """The error signal by layer and each layer's share of what is learnt | what remains of the task by steps, as the
    kernel predicts it | loss by learning rate, as a trial saw it.

    Args:
        frame: `Trainability.frame`; `path`: the main path, as `GradientFlow.path`.
        curve: `steps` and `remaining`.
        trial: rate against loss, None without one.
        constant_loss: of outputs that know nothing of the inputs.
    """
    with mpl.rc_context(STYLE):
        lines = textwrap.wrap(title, 150)
        figure = Figure(figsize=(12.0, 4.2 + 0.2 * len(lines)), layout="constrained")
        layers, left, rates = figure.subplots(1, 3, width_ratios=[1.7, 1, 1])
        draw_layers(layers, frame, path)
        left.plot(curve["steps"], curve["remaining"], color="C0", lw=1.8)
        left.set(xscale="log", ylim=(-0.03, 1.03), xlabel="steps at the best stable rate",
                 ylabel="share of the task that is left", title="predicted by the tangent kernel")
        if trial is None:
            rates.set_axis_off()
            rates.text(0.5, 0.5, "not tried: trial=100\ntrains copies for 100 steps", ha="center", va="center",
                       color="0.4")
        else:
            draw_rates(rates, trial, constant_loss)
        figure.suptitle("\n".join(lines), fontsize=9)
    return figure


def draw_layers(ax: Axes, frame: pd.DataFrame, path: pd.DataFrame) -> None:
    """log10 norms by layer, and bars for the shares; modules' names where they fit."""
    beside = frame[~frame["main_path"]]
    norm_by_layer(ax, path["layer"], path["log10_error_signal_norm"], color="C0", ls="-", label="∂L/∂h, main path")
    ax.plot(beside["layer"], beside["log10_error_signal_norm"], ".", color="0.6", ms=4, zorder=1,
            label="in branches" if len(beside) else None)
    share = ax.twinx()
    share.bar(frame["layer"], frame["share_of_learning"], color="C1", alpha=0.4, width=0.8)
    share.set(ylim=(0, max(0.05, 3 * frame["share_of_learning"].max())), ylabel="share of what the first step learns")
    share.yaxis.label.set_color("C1")
    share.grid(visible=False)
    every = max(1, -(-len(frame) // NAMED_LAYERS))
    ax.set_xticks(frame["layer"][::every], frame["module"][::every], rotation=60, ha="right", fontsize=7)
    ax.set(title="error signal, and where the first step learns", ylabel="log$_{10}$ norm of the error signal")
    widen(ax, 2.0)
    ax.legend(loc="upper left")


def draw_rates(ax: Axes, trial: pd.DataFrame, constant_loss: float) -> None:
    known = trial[trial["loss"].notna()]
    ax.plot(known["learning_rate"], known["loss"], color="C0", lw=1.0, marker="o", ms=5)
    for row in known.itertuples():
        ax.annotate(f"{row.steps}", (row.learning_rate, row.loss), xytext=(0, 6), textcoords="offset points",
                    ha="center", fontsize=7, color="0.4")
    for rate in trial.loc[trial["loss"].isna(), "learning_rate"]:
        ax.axvline(rate, color="crimson", lw=1.0, ls=":")
    ax.axhline(constant_loss, color="0.4", lw=0.8, ls="--", label="constant outputs")
    none = ", dotted: none" if trial["loss"].isna().any() else ""
    ax.margins(y=0.12)
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss", title=f"seen in a trial (steps{none})")
    ax.legend(loc="best", fontsize=8)
