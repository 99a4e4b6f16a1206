"""How far the gates of one model are open: by layer, or along time."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import check_frame, takes
from flowstudy.plots.style import STYLE, median_and_band


@takes(frame=check_frame)
def gate_activity(frame: pd.DataFrame) -> Figure:
    """The median over units and the band from their 10th to their 90th percentile, of each gate; over the time steps
    where there are several, else over the layers."""
    over_time = "time" in frame and frame["time"].nunique() > 1
    groups = frame.groupby("gate", sort=False) if "gate" in frame else [("transform gate", frame)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        ax = figure.subplots()
        for (name, rows), color in zip(groups, sns.color_palette("colorblind", 10) * 10, strict=False):
            median_and_band(ax, rows, "time" if over_time else "layer", "activity", color=color, label=str(name))
        ax.set(xlabel="time step" if over_time else "layer (1 is the first)", ylabel="activity", ylim=(-0.03, 1.03))
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.legend(frameon=False)
    return figure
