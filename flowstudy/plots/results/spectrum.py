"""A model's singular values by rank."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import NAME, check_frame, takes
from flowstudy.plots.style import STYLE, widen


@takes(frame=check_frame, title=NAME)
def spectrum(frame: pd.DataFrame, title: str = "") -> Figure:
    """log10 singular values by rank: a thin line per sample, their median thick, the error grey where it is visible.

    Values that are exactly 0 or lost in rounding are counted in the legend.

    Args:
        frame: `JacobianSpectrum.frame`.
        title: a sentence above the picture.

    Returns:
        The Figure.
    """
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
