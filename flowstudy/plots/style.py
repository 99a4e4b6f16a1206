"""Parts that all figures share: the palette, axes, labels at the ends of lines, medians and bands."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.typing import ColorType

from flowstudy import names

STYLE = sns.axes_style("whitegrid") | {
    "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "legend.title_fontsize": 9, "figure.titlesize": 12, "grid.color": "0.9", "axes.edgecolor": "0.6",
}
WIDTH = 9.6  # width of a figure, in inches: that of a notebook
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

# The palette: one colour has one meaning in all figures, and each has a contrast of 3:1 or more on white.
NETS = {"plain": "#c4500a", "highway": "#0b62a8", "residual": "#2e7d32"}  # kinds of net; others: OTHER
GATES = LinearSegmentedColormap.from_list("gates", ["#3f93cf", "#0b62a8", "#04193a"])  # open to closed
DEPTHS = mpl.colormaps["magma"]  # between the two places of DEPTH_RANGE: shallow to deep
DEPTH_RANGE = (0.66, 0.1)
SCHEMES = {"glorot": "#00808a", "he": "#8a6d00", "lecun": "#9b2d6f", "orthogonal": "#111111", "random": "#6e6e6e"}
OTHER = "#7a4b2a"
MARKERS = {"normal": "o", "uniform": "s", "orthogonal": "D", "walk": "^"}  # by the end of a scheme's name
CLASSES = ("#6a4c93", "#00695c", "#ad1457", "#5d4037")  # of a data set, or one trained net beside another
ROUTES = {"float32": "#7b1fa2", "float64": "#3c5a73", "product": "#000000"}  # to one net's singular values
REFERENCE = "0.35"  # colour of lines that are not results, such as chance
LOST = "#b00020"    # colour of a run that diverged


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


# --- colours and marks -----------------------------------------------------------------------------------------------


def net_color(net: str) -> str:
    return NETS.get(net, OTHER)


def gate_colors(biases: pd.Series) -> dict[float, str]:
    """A colour for each gate bias: the more closed the gates, the darker."""
    known = sorted(biases.dropna().unique(), reverse=True)
    return {bias: to_hex(GATES(i / max(len(known) - 1, 1))) for i, bias in enumerate(known)}


def depth_colors(frame: pd.DataFrame) -> dict[int, str]:
    """A colour for each depth: the deeper, the darker."""
    depths = sorted(frame["depth"].unique().tolist())
    places = np.linspace(*DEPTH_RANGE, len(depths)) if len(depths) > 1 else [DEPTH_RANGE[1]]
    return {depth: to_hex(DEPTHS(place)) for depth, place in zip(depths, places, strict=True)}


def family_styles(rows: pd.DataFrame) -> dict[str, dict]:
    """Colour and marker of each `family`: of highway nets by gate bias, of others by initialiser, a marker for each
    where colour fails."""
    gates = gate_colors(rows["gate_bias"])
    styles = {}
    for row in rows.drop_duplicates("family").itertuples():
        scheme, gated = row.init.split("_"), pd.notna(row.gate_bias)
        color = gates[row.gate_bias] if gated else SCHEMES.get(scheme[0], OTHER)
        marker = "osD^vP*X"[list(gates).index(row.gate_bias) % 8] if gated else MARKERS.get(scheme[-1], "v")
        styles[row.family] = {"color": color, "marker": marker, "ms": 4}
    return styles


def halo(width: float) -> list:
    """A white edge, so that a line or a word shows on what it crosses."""
    return [withStroke(linewidth=width, foreground="white")]


# --- lines -----------------------------------------------------------------------------------------------------------


def median_and_band(ax: Axes, rows: pd.DataFrame, x: str, y: str, *, band: bool = True, **style: object) -> None:
    """The median over nets (and samples), and the `band` between the quantiles of `BAND`."""
    grouped = rows.groupby(x)[y]
    middle, low, high = grouped.median(), grouped.quantile(BAND[0]), grouped.quantile(BAND[1])
    shown = np.isfinite(middle)
    ax.plot(middle.index[shown], middle[shown], **{"lw": 1.5} | style)
    # Where some nets have lost the rank (-inf), the band opens downwards: off the axes, which the medians set.
    if band:
        ax.fill_between(middle.index[shown], low[shown], high[shown], color=style["color"], alpha=0.2, lw=0)


def draw_prediction(ax: Axes, predicted: pd.Series, valid: pd.Series, **style: object) -> None:
    """Draw theory against the index: dashed where it covers the nets, thin and dotted where it only has a number."""
    ax.plot(predicted.index, predicted.where(valid.astype(bool)), **{"ls": "--"} | style)
    if (predicted.notna() & ~valid.astype(bool)).any():
        ax.plot(predicted.index, predicted, **style | {"ls": ":", "lw": 0.9})


def draw_chance(ax: Axes, loss: float) -> None:
    """The loss of a net that knows nothing, dotted and named, on a logarithmic axis."""
    ax.set_yscale("log")
    ax.axhline(loss, color=REFERENCE, lw=1.0, ls=":")
    label_end(ax, loss, "chance", REFERENCE)


def label_end(ax: Axes, y: float | np.number, words: str, color: ColorType) -> None:
    """`words` right of the axes at the height of a line's last point; `keep_apart` moves them where they would meet."""
    if np.isfinite(y):
        ax.annotate(words, (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
                    va="center", color=color, fontsize=8.5, annotation_clip=False, gid="end")


def keep_apart(figure: Figure) -> None:
    """Move the labels at the ends of lines up and down, as little as possible, until none meets another."""
    ends = [[text for text in ax.texts if text.get_gid() == "end"] for ax in figure.axes]
    if not any(ends):
        return
    figure.draw_without_rendering()
    for labels in ends:
        boxes = [label.get_window_extent() for label in labels]
        if boxes:
            middles = np.array([(box.y0 + box.y1) / 2 for box in boxes])
            moved = spread(middles, max(box.height for box in boxes))
            for label, shift in zip(labels, (moved - middles) * 72 / figure.dpi, strict=True):
                label.set_position((5, shift))


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """The nearest places, in least squares, of the same order and at least `gap` apart."""
    order = np.argsort(places, kind="stable")
    pools: list[list[float]] = []  # of neighbours that touch: sum of places less their own gaps, how many
    for place in places[order] - gap * np.arange(len(places)):
        pools.append([place, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0], pools[-1][1] = pools[-1][0] + total, pools[-1][1] + count
    found = np.empty(len(places))
    found[order] = np.concatenate([np.full(int(n), total / n) for total, n in pools]) + gap * np.arange(len(places))
    return found


# --- axes ------------------------------------------------------------------------------------------------------------


def title_of(panels: pd.DataFrame, panel: str, family: str) -> str:
    return family if panels["panel"].nunique() == 1 else f"{family}, {panel}"


def grid_of_axes(panels: int, columns: int, height: float = 2.3, *,
                 share_y: bool | str = True) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a notebook, with `panels` axes row by row; places without one are left out."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.remove()
    return figure, axes[:panels]


def finish(axes: list[Axes], x_label: str, y_label: str) -> None:
    """Labels at the left and lower edges of the grid."""
    columns = axes[0].get_gridspec().ncols
    for i, ax in enumerate(axes):
        lowest = i + columns >= len(axes)
        ax.tick_params(labelbottom=lowest)
        ax.margins(x=0.02)
        ax.set(xlabel=x_label if lowest else "", ylabel=y_label if i % columns == 0 else "")


def depth_axis(ax: Axes, depths: pd.Series) -> None:
    ticks = sorted(depths.unique())
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{d}" for d in ticks])
    ax.minorticks_off()


def widen(ax: Axes, decades: float) -> None:
    """Let the y axis show at least this many decades, so that a small fluctuation looks small."""
    log = ax.get_yscale() == "log"
    low, high = np.log10(ax.get_ylim()) if log else ax.get_ylim()
    add = max(0.0, decades - (high - low)) / 2
    ax.set_ylim(*(10.0 ** np.array([low - add, high + add]) if log else (low - add, high + add)))
