"""What a random search says beside its best run: how many runs train, and which gate bias trains at which depth."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from flowstudy.arguments import a_real, check_frame, takes

from .style import STYLE, depth_axis
from .training import CHANCE, final_loss, gate_bias_rules

Z = 1.96  # of the intervals: 95 %


@takes(loss=check_frame, threshold=a_real("positive and finite"))
def which_runs_train(loss: pd.DataFrame, threshold: float = 1e-3) -> Figure:
    """Share of the runs whose final loss is below `threshold` by depth, with Wilson intervals | final loss of the
    highway runs by depth and gate bias, a panel per activation, since the bias from which on they train differs, with
    both rules of `theory.suggest_gate_bias` drawn over it."""
    final = final_loss(loss)
    highway = final[final["net"] == "highway"]
    activations = sorted(highway["activation"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 + 4.4 * len(activations), 3.9), layout="constrained")
        share, *panels = figure.subplots(1, 1 + len(activations))
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
        share.legend(loc="upper center", ncols=2, fontsize=8)  # above all intervals
        lowest = highway["final"].min()
        for ax, activation in zip(panels, activations, strict=True):
            dots = loss_by_gate_bias(ax, highway[highway["activation"] == activation], lowest)
        if panels:
            figure.colorbar(dots, ax=panels, label="log$_{10}$ final training loss")
    return figure


@takes(loss=check_frame)
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


def loss_by_gate_bias(ax: Axes, highway: pd.DataFrame, lowest: float) -> PathCollection:
    """A dot a run, of one activation; runs at one place stand side by side, the best in front."""
    rows = highway.sort_values("final", ascending=False, na_position="first")
    place = rows.groupby(["depth", "gate_bias"]).cumcount() - (
        rows.groupby(["depth", "gate_bias"])["final"].transform("size") - 1) / 2
    most = rows.groupby(["depth", "gate_bias"]).size().max()
    x, died = rows["depth"] * (1.5 ** (place / max(most, 7))), rows["final"].isna()
    dots = ax.scatter(x[~died], rows["gate_bias"][~died], c=np.log10(rows["final"][~died].astype(float)),
                      cmap="viridis_r", vmin=math.log10(lowest), vmax=math.log10(CHANCE), s=36, edgecolors="0.3",
                      linewidths=0.4, zorder=3)
    ax.scatter(x[died], rows["gate_bias"][died], marker="x", color="crimson", s=30, label="diverged", zorder=3)
    low, high = rows["depth"].min(), rows["depth"].max()
    for bias, depths, style in gate_bias_rules(rows, float(max(2, low * 0.8)), float(high * 1.2)):
        ax.plot(depths, bias, color="black", lw=1.2, **style)
    depth_axis(ax, rows["depth"])
    ax.set(title=f"highway runs, {rows['activation'].iloc[0]}", xlabel="depth (hidden layers)",
           ylabel="gate bias $b_T$ at the start")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, frameon=False)
    return dots


def wilson(successes: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share: good for few runs too, and for none or all of them."""
    share, scale = successes / runs, 1 + Z**2 / runs
    middle = (share + Z**2 / (2 * runs)) / scale
    half = Z / scale * np.sqrt(share * (1 - share) / runs + Z**2 / (4 * runs**2))
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)
