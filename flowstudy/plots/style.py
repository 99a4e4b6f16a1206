"""What the figures share: colours, axes, legends, labels, medians and bands."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowstudy import names

STYLE = sns.axes_style("whitegrid") | {
    "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "legend.title_fontsize": 9, "figure.titlesize": 12, "grid.color": "0.9", "axes.edgecolor": "0.6",
}
BAND = (0.1, 0.9)  # quantiles over seeds
TEN_TO_NINETY = 1.2816  # half that band of a normal law, in standard deviations
LABELS = {
    "log10_error_signal_norm": "log$_{10}$ ‖∂L/∂h‖  [nats per unit]",
    "log10_weight_gradient_norm": "log$_{10}$ ‖∂L/∂W‖  [nats per unit weight]",
    "init": {"glorot_normal": "Glorot normal", "glorot_uniform": "Glorot uniform", "he_normal": "He normal",
             "he_uniform": "He uniform", "lecun_normal": "LeCun normal",
             "lecun_uniform": "LeCun uniform", "orthogonal": "orthogonal",
             "random_walk": "random walk"},
}


def with_family(frame: pd.DataFrame) -> pd.DataFrame:
    """`family` names the initialiser, or a highway net's gate bias; `panel` the kind of net and its activation."""
    names.meet_kinds()
    inits = LABELS["init"]
    family = [
        rf"$b_T$ = {row.gate_bias:g}" if pd.notna(row.gate_bias)
        else inits.get(row.init, row.init) + ("" if pd.isna(row.gain) else f" (gain {row.gain:.3g})")
        for row in frame[["net", "gate_bias", "init", "gain"]].drop_duplicates().itertuples()
    ]
    kinds = frame[["net", "gate_bias", "init", "gain"]].drop_duplicates().assign(family=family)
    # Nets that differ in gain alone are told apart by activation where that explains the gain.
    return frame.merge(kinds, how="left").assign(
        panel=lambda rows: rows["net"].map(names.LABELS) + " " + rows["activation"])


def median_and_band(ax: Axes, rows: pd.DataFrame, x: str, y: str, **style: object) -> None:
    """The median over nets (and samples), and the band between the quantiles of `BAND`."""
    grouped = rows.groupby(x)[y]
    middle, low, high = grouped.median(), grouped.quantile(BAND[0]), grouped.quantile(BAND[1])
    shown = np.isfinite(middle)
    ax.plot(middle.index[shown], middle[shown], lw=1.5, **style)
    # Where some nets have lost the rank (-inf), the band opens downwards: off the axes, which the medians set.
    ax.fill_between(middle.index[shown], low[shown], high[shown], color=style["color"], alpha=0.2, lw=0)


def gap_in_words(nets: pd.DataFrame, measured: str) -> str:
    """Mean of `measured` less `predicted` over nets of one kind, the standard error that `z` has, and z."""
    gap, z = (nets[measured] - nets["predicted"]).mean(), nets["z"].iloc[0]
    return f" ({gap:+.2g} ± {abs(gap / z):.1g}, z {z:+.1f})" if np.isfinite([gap, z]).all() and z else ""


def draw_prediction(ax: Axes, predicted: pd.Series, valid: pd.Series, **style: object) -> None:
    """Against the index: dashed where theory covers the nets, thin and dotted on where it has a number but does not."""
    ax.plot(predicted.index, predicted.where(valid.astype(bool)), **{"ls": "--"} | style)
    if (predicted.notna() & ~valid.astype(bool)).any():
        ax.plot(predicted.index, predicted, **style | {"ls": ":", "lw": 0.7})


def title_of(panels: pd.DataFrame, panel: str, family: str) -> str:
    return family if panels["panel"].nunique() == 1 else f"{family}, {panel}"


def depth_colors(frame: pd.DataFrame) -> dict[int, tuple]:
    depths = sorted(frame["depth"].unique().tolist())
    return dict(zip(depths, sns.color_palette("viridis", len(depths) + 1)[:-1][::-1], strict=True))  # dark is deep


def line_styles() -> list[dict]:
    """Told apart by colour, and by marker where colour fails."""
    return [{"color": color, "marker": marker, "ms": 4}
            for color, marker in zip(sns.color_palette("colorblind"), "osD^vP*X<>", strict=False)]


def grid_of_axes(panels: int, columns: int, height: float = 2.3, width: float = 2.7, *,
                 share_y: bool | str = True) -> tuple[Figure, list[Axes]]:
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(max(columns * width, 5.4), rows * height + 0.5), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False).flat)


def finish(figure: Figure, axes: list[Axes], used: int, x_label: str, y_label: str) -> None:
    for ax in axes[used:]:
        ax.set_axis_off()
    columns = axes[0].get_gridspec().ncols
    for i, ax in enumerate(axes[:used]):
        ax.tick_params(labelbottom=i + columns >= used, labelleft=i % columns == 0)
        ax.margins(x=0.02)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)


def depth_axis(ax: Axes, depths: pd.Series) -> None:
    ticks = sorted(depths.unique())
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{d}" for d in ticks])
    ax.minorticks_off()


def legend(figure: Figure, colors: Mapping[str, tuple], frame: pd.DataFrame) -> None:
    """Depths beside the figure, and above it the kind of net where all panels share one."""
    lines = [Line2D([], [], color=color, lw=2) for color in colors.values()]
    figure.legend(lines, colors.keys(), title="depth", loc="outside right center", frameon=False)
    if frame["panel"].nunique() == 1:
        figure.suptitle(frame["panel"].iloc[0])


def legend_below(ax: Axes) -> None:
    """Two columns under the axes, one where labels tell gaps: they are long."""
    labels = ax.get_legend_handles_labels()[1]
    columns = 1 if max(map(len, labels), default=0) > 30 else 2
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=columns, fontsize=7, frameon=False)


def widen(ax: Axes, decades: float) -> None:
    """The y axis shows at least so many decades: a small fluctuation looks small."""
    log = ax.get_yscale() == "log"
    low, high = np.log10(ax.get_ylim()) if log else ax.get_ylim()
    add = max(0.0, decades - (high - low)) / 2
    ax.set_ylim(*(10.0 ** np.array([low - add, high + add]) if log else (low - add, high + add)))
