"""How far the gates of one model are open: by layer, or along time."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import check_frame, takes
from flowstudy.plots.message import count, listed, number, speak
from flowstudy.plots.style import STYLE, median_and_band

from .layer_axis import MARKS

MOST_NAMED = 3  # the most gates that the sentence above the picture names


@takes(frame=check_frame)
def gate_activity(frame: pd.DataFrame) -> Figure:
    """Activity of each gate against time where there are several time steps, else against layer.

    Lines are medians over units, bands go from their 10th to their 90th percentile.

    Args:
        frame: `GateActivity.frame`.

    Returns:
        The Figure, its message above and its caption below.
    """
    over_time = "time" in frame and frame["time"].nunique() > 1
    groups = list(frame.groupby("gate", sort=False)) if "gate" in frame else [("transform gate", frame)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        ax = figure.subplots()
        for (name, rows), (color, marker) in zip(groups, MARKS * len(groups), strict=False):
            median_and_band(ax, rows, "time" if over_time else "layer", "activity", color=color, marker=marker, ms=4,
                            label=str(name))
        ax.set(xlabel="time step" if over_time else "layer (1 is the first)", ylabel="activity", ylim=(-0.03, 1.03))
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        figure.legend(loc="outside right center", frameon=False)
        middles = [f"{name}: {number(rows['activity'].median())}" for name, rows in groups[:MOST_NAMED]]
        more = f" and {count(len(groups) - MOST_NAMED, 'more gate')}" if len(groups) > MOST_NAMED else ""
        return speak(figure, f"How far gates are open, 0 to 1: {listed(middles)}{more} (median over units and "
                     f"{'time steps' if over_time else 'layers'}).",
                     "One model. Lines: medians over units; shaded: 10 to 90 % of the units.")
