"""Learning rates at which nets train, by depth, and the edge of training among highway nets."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowstudy.arguments import check_frame, takes
from flowstudy.plots.message import count, data_of, listed, number, speak
from flowstudy.plots.style import REFERENCE, STYLE, WIDTH, halo, net_color

from .readings import OPTIMIZERS, TRAINED

EDGES = {  # where the edge of training is put: words, dashes, mark
    "rule": ("by the rule -ln(2 L - 1)", "--", ""), "kernel": ("by the kernel at the start", "-", "o"),
    "momentum": ("trained by momentum", ":", "s"), "adam": ("trained by Adam", "-.", "D")}


@takes(windows=check_frame)
def rate_window(windows: pd.DataFrame) -> Figure:
    """The interval of learning rates at which each net trains by depth, a panel a family, a line a net; the kernel's
    largest stable rate over it.

    Args:
        windows: of `outcomes.rates.windows`, of one optimizer.

    Returns:
        The Figure, its message above and its caption below.
    """
    families = list(windows["family"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
        for ax, family in zip(axes, families, strict=True):
            draw_windows(ax, windows[windows["family"] == family], net_color(family))
            ax.set(title=f"{family} nets", xlabel="depth (hidden layers)", yscale="log")
        axes[0].set_ylabel("learning rate")
        known = windows["stable_rate"].notna().any()
        handles = [Line2D([], [], color=REFERENCE, lw=3, label="rates at which\na net trains"),
                   Line2D([], [], color=REFERENCE, ls="", marker="x", label="trains at none"),
                   Line2D([], [], color="black", ls="", marker="_", ms=9, mew=2,
                          label="the kernel's largest\nstable rate")][:3 if known else 2]
        figure.legend(handles=handles, loc="outside right center", frameon=False)
        each, steps = windows.groupby(["family", "depth"]).size().max(), windows["steps"].iloc[0]
        return speak(figure, windows_in_words(windows),
                     f"{count(len(windows), 'net')} trained on {data_of(windows)} by "
                     f"{OPTIMIZERS[windows['optimizer'].iloc[0]]} for {steps} steps at eight rates, up to {each} of a "
                     f"depth: two activations, three starts. Trained: training accuracy above {TRAINED:g}."
                     + (" Stable: the first 20 steps do not raise the loss above the first." if known else ""))


def draw_windows(ax: Axes, nets: pd.DataFrame, color: str) -> None:
    depths = sorted(nets["depth"].unique())
    floor = nets["lowest"].min() if nets["lowest"].notna().any() else 1e-3
    for place, depth in enumerate(depths):
        rows = nets[nets["depth"] == depth].sort_values(["activation", "start"])
        for x, row in zip(place + np.linspace(-0.3, 0.3, len(rows)), rows.itertuples(), strict=True):
            if row.rates:
                ax.plot([x, x], [row.lowest / 1.25, row.highest * 1.25], color=color, lw=3.5, solid_capstyle="butt")
            else:
                ax.plot([x], [floor], color=color, marker="x", ms=6, ls="")
            if np.isfinite(row.stable_rate):
                ax.plot([x], [row.stable_rate], color="black", marker="_", ms=9, mew=2, ls="", path_effects=halo(3.5))
    ax.set_xticks(range(len(depths)), [f"{depth}" for depth in depths])
    ax.grid(visible=False, axis="x")


def windows_in_words(windows: pd.DataFrame) -> str:
    """How many nets of the deepest of each family train at all, and at how many rates of the grid those do."""
    depth, words = windows["depth"].max(), []
    for family, nets in windows[windows["depth"] == depth].groupby("family", sort=False):
        trained = nets["rates"] > 0
        where = f", at {number(nets['rates'][trained].median())} of eight rates (median)" if trained.any() else ""
        words.append(f"{int(trained.sum())} of {count(len(nets), f'{family} net')}{where}")
    stable = windows[(windows["rates"] > 0) & windows["stable_rate"].notna()]
    ratio = (stable["highest"] / stable["stable_rate"]).median()
    also = f"; the largest rate that trains is {number(ratio)} times the stable one (median)" if len(stable) else ""
    return f"At {depth} layers there train {listed(words)}{also}."


@takes(nets=check_frame, edges=check_frame)
def highway_edge(nets: pd.DataFrame, edges: pd.DataFrame) -> Figure:
    """Accuracy of highway nets over depth and gate bias, and where the kernel at the start and the rule of
    `theory.suggest_gate_bias` put the edge of training.

    Args:
        nets: of `outcomes.known_outcomes`, the family "highway map".
        edges: of `outcomes.rates.highway_edge`.

    Returns:
        The Figure, its message above and its caption below.
    """
    table = nets.pivot_table(index="depth", columns="start", values="accuracy_momentum", aggfunc="median")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        ax = figure.subplots()
        places = np.arange(len(table))
        picture = ax.pcolormesh(edges_of(table.columns), edges_of(places), table, cmap="viridis_r", vmin=0, vmax=1)
        figure.colorbar(picture, label="training accuracy, momentum")
        for name, (words, dashes, mark) in EDGES.items():
            ax.plot(edges[name], places, color="black", ls=dashes, marker=mark, ms=5, lw=1.6, label=words,
                    path_effects=halo(3.6))
        ax.set(xlabel="gate bias $b_T$", ylabel="depth (hidden layers)")
        ax.set_yticks(places, [f"{depth}" for depth in table.index])
        ax.grid(visible=False)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
        seeds, steps = count(nets["seed"].nunique(), "seed"), nets["steps"].iloc[0]
        return speak(figure, edge_in_words(edges),
                     f"{count(len(nets), 'highway tanh net')} on {data_of(nets)}, {seeds}, {steps} steps at the best "
                     "of eight rates. Lines: the gate bias up to which nets of a depth train, or should: the accuracy "
                     f"falls through {TRAINED:g}, the kernel's reading rises through the middle of its thresholds; "
                     "where a line has no mark, neither happens among these biases.")


def edges_of(middles: np.ndarray | pd.Index) -> np.ndarray:
    """Of cells with these middles, ascending: half way between two; one cell alone is 1 wide."""
    middles = np.asarray(middles, dtype=float)
    steps = np.diff(middles) if len(middles) > 1 else np.ones(1)
    return np.concatenate([[middles[0] - steps[0] / 2], middles[:-1] + np.diff(middles) / 2,
                           [middles[-1] + steps[-1] / 2]])


def edge_in_words(edges: pd.DataFrame) -> str:
    """How far from the edge by training the two predictions lie, on average over the depths where both are."""
    words = []
    for name, where in (("rule", "the rule -ln(2 L - 1)"), ("kernel", "the kernel at the start")):
        gaps = {words_of: (edges[name] - edges[optimizer]).dropna()
                for optimizer, words_of in (("momentum", "momentum"), ("adam", "Adam"))}
        sides = [f"{number(abs(gap.mean()))} {'below' if gap.mean() < 0 else 'above'} that of {optimizer}"
                 for optimizer, gap in gaps.items() if len(gap)]
        words += [f"{where} lies {listed(sides)}"] if sides else []
    if not words:
        return f"None of {count(len(edges), 'depth')} has an edge among these biases."
    return f"The edge of training, mean over the depths: {'; '.join(words)}."
