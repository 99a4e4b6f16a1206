"""What a random search says beside its best run: how many runs train, and which gate bias trains at which depth."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowstudy import theory

from .style import STYLE, depth_axis
from .training import CHANCE, final_loss

Z = 1.96  # of the intervals: 95 %


def which_runs_train(loss: pd.DataFrame, threshold: float = 1e-3) -> Figure:
    """Share of the runs whose final loss is below `threshold` by depth, with Wilson intervals | final loss of the
    highway runs by depth and gate bias, with the rule b_T = -ln(2 L - 1) drawn over it."""
    final = final_loss(loss)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.7), layout="constrained")
        share, bias = figure.subplots(1, 2, width_ratios=[1, 1.15])
        for net, offset in (("plain", 0.97), ("highway", 1.03)):
            trains = final[final["net"] == net].groupby("depth")["final"].agg([lambda x: (x < threshold).sum(), "size"])
            low, high = wilson(*trains.to_numpy(dtype=float).T)
            middle = (trains.iloc[:, 0] / trains.iloc[:, 1]).to_numpy()
            share.errorbar(trains.index * offset, middle, [middle - low, high - middle], marker="o", ms=4, capsize=2,
                           label=f"{net}, {trains.iloc[:, 1].min()} runs each",
                           color=sns.color_palette("colorblind")[net == "plain"])
        depth_axis(share, final["depth"])
        share.set(title=f"share of runs that train: final loss below {threshold:g}", ylim=(-0.03, 1.2),
                  yticks=np.linspace(0, 1, 6), xlabel="depth (hidden layers)")
        share.legend(loc="upper center", ncols=2)  # above all intervals
        loss_by_gate_bias(bias, final[final["net"] == "highway"])
    return figure


def training_curve(loss: pd.DataFrame) -> Figure:
    """Training loss by epoch, a line a net; chance dotted."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        ax = figure.subplots()
        for _, rows in loss.groupby("cell", sort=False):
            cell = rows.iloc[0]
            ax.plot(rows["epoch"], rows["loss"], marker=".", label=f"{cell['net']}, depth {cell['depth']}, "
                    f"$b_T$ = {cell['gate_bias']:g}, learning rate {cell['learning_rate']:g}")
        ax.axhline(CHANCE, color="0.4", lw=0.8, ls=":")
        ax.set(xlabel="epoch", ylabel="mean training cross-entropy  [nats]", yscale="log")
        ax.legend(loc="best")
    return figure


def loss_by_gate_bias(ax: Axes, highway: pd.DataFrame) -> None:
    """A dot a run; runs at one place stand side by side, the best in front."""
    rows = highway.sort_values("final", ascending=False, na_position="first")
    place = rows.groupby(["depth", "gate_bias"]).cumcount() - (
        rows.groupby(["depth", "gate_bias"])["final"].transform("size") - 1) / 2
    x, died = rows["depth"] * 1.06**place, rows["final"].isna()
    dots = ax.scatter(x[~died], rows["gate_bias"][~died], c=np.log10(rows["final"][~died].astype(float)),
                      cmap="viridis_r", vmax=math.log10(CHANCE), s=42, edgecolors="0.3", linewidths=0.4, zorder=3)
    ax.scatter(x[died], rows["gate_bias"][died], marker="x", color="crimson", s=30, label="diverged", zorder=3)
    ends = max(1, rows["depth"].min() * 0.8), rows["depth"].max() * 1.2
    depths = np.unique(np.geomspace(*ends, 50).round().astype(int))
    ax.plot(depths, theory.suggest_gate_bias(depths), color="black", lw=1.2, label=r"$b_T = -\ln(2 L - 1)$")
    depth_axis(ax, rows["depth"])
    ax.set(title="highway runs", xlabel="depth (hidden layers)", ylabel="gate bias $b_T$ at the start")
    ax.legend(loc="best")
    ax.figure.colorbar(dots, ax=ax, label="log$_{10}$ final training loss")


def wilson(successes: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share: good for few runs too, and for none or all of them."""
    share, scale = successes / runs, 1 + Z**2 / runs
    middle = (share + Z**2 / (2 * runs)) / scale
    half = Z / scale * np.sqrt(share * (1 - share) / runs + Z**2 / (4 * runs**2))
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)
