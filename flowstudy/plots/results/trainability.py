"""The picture of `trainability`: learning by layer in the first step, the kernel's prediction, and the trial."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowstudy.arguments import NAME, a_real, check_frame, optional, takes
from flowstudy.plots.style import STYLE, widen

from .flow import ERROR, draw_path, framed
from .layer_axis import MARKS, RED, draw_marks, handles_of, mark_zeros, marks_of, name_layers

BLUE, ORANGE = MARKS[0][0], MARKS[1][0]


@takes(frame=check_frame, path=check_frame, curve=check_frame, trial=optional(check_frame),
       constant_loss=a_real("a number"), title=NAME)
def trainability(frame: pd.DataFrame, path: pd.DataFrame, curve: pd.DataFrame, trial: pd.DataFrame | None,
                 constant_loss: float, title: str = "") -> Figure:
    """Four panels: the error signal by layer, each layer's share of the first step's learning, the remaining part of
    the task by steps as the tangent kernel predicts it, and the loss by learning rate after a trial.

    Args:
        frame: `Trainability.frame`; `path`: the main path, as `GradientFlow.path`.
        curve: `steps` and `remaining`.
        trial: rate against loss, None without one.
        constant_loss: the lowest loss of outputs that are the same for all inputs.

    Returns:
        The Figure.
    """
    marks = marks_of(frame["type"])
    with mpl.rc_context(STYLE):
        figure = framed(title, height=6.8)
        axes = figure.subplot_mosaic([["error"] * 2, ["share"] * 2, ["left", "rates"]], height_ratios=[1.1, 0.55, 1.1])
        error, share, left, rates = (axes[name] for name in ("error", "share", "left", "rates"))
        draw_path(error, path)
        draw_marks(error, frame, ERROR, marks)
        mark_zeros(error, frame, ERROR)
        error.set(title="error signal ‖∂L/∂h‖ (line: main path; cross: exactly 0)", ylabel="log$_{10}$ norm")
        error.tick_params(labelbottom=False)
        widen(error, 2.0)
        share.bar(frame["layer"], 100 * frame["share_of_learning"], color=ORANGE, width=0.8)
        share.set(ylabel="%", title="share of what the first step learns")
        name_layers(error, frame)
        name_layers(share, frame)
        draw_remaining(left, curve)
        draw_rates(rates, trial, constant_loss)
        handles = handles_of(frame, marks)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False)
    return figure


def draw_remaining(ax: Axes, curve: pd.DataFrame) -> None:
    ax.plot(curve["steps"], curve["remaining"], color=BLUE, lw=1.8)
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="steps at the best stable rate",
           ylabel="share of the task that is left", title="predicted by the tangent kernel")
    ax.margins(x=0)


def draw_rates(ax: Axes, trial: pd.DataFrame | None, constant_loss: float) -> None:
    """Loss after the trial by learning rate; the number at a mark counts the steps that were made at it."""
    if trial is None:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "not tried: trial=100\ntrains copies for 100 steps", ha="center", va="center", color="0.35")
        return
    known = trial[trial["loss"].notna()]
    ax.axhline(constant_loss, color="0.35", lw=0.9, ls="--", label="constant outputs")
    ax.plot(known["learning_rate"], known["loss"], color=BLUE, lw=1.0, marker="o", ms=5, label="after so many steps")
    for row in known.itertuples():
        above = row.loss >= known["loss"].median()
        ax.annotate(f"{row.steps}", (row.learning_rate, row.loss), xytext=(0, 7 if above else -7), ha="center",
                    va="bottom" if above else "top", textcoords="offset points", fontsize=8, color="0.35")
    lost = trial.loc[trial["loss"].isna(), "learning_rate"]
    for i, rate in enumerate(lost):
        ax.axvline(rate, color=RED, lw=1.0, ls=":", label="diverged" if i == 0 else None)
    far_apart = known["loss"].max() > 10 * known["loss"].min()
    ax.margins(y=0.2)
    ax.set(xscale="log", yscale="log" if far_apart else "linear", xlabel="learning rate", ylabel="loss",
           title="seen in a trial")
    ax.legend(loc="best", fontsize=8)
