"""One function per figure: tidy frame in, matplotlib Figure out.

Lines are medians over seeds, bands go from the 10th to the 90th percentile.
"""

import io
import math
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowstudy import theory
from flowstudy.predictions import predicted_error_signal, with_predicted_slopes

STYLE = sns.axes_style("whitegrid") | {
    "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "legend.title_fontsize": 9, "figure.titlesize": 12, "grid.color": "0.9", "axes.edgecolor": "0.6",
}
BAND = (0.1, 0.9)  # quantiles over seeds
LABELS = {
    "log10_error_signal_norm": "log$_{10}$ ‖∂L/∂h‖  [nats per unit]",
    "log10_weight_gradient_norm": "log$_{10}$ ‖∂L/∂W‖  [nats per unit weight]",
    "init": {"glorot_normal": "Glorot normal", "glorot_uniform": "Glorot uniform", "he_normal": "He normal",
             "he_uniform": "He uniform", "lecun_normal": "LeCun normal", "orthogonal": "orthogonal",
             "random_walk": "random walk"},
}
CLASSES = 10
CHANCE = math.log(CLASSES)  # cross-entropy of a ten-class net that knows nothing [nats]


def gradient_by_layer(frame: pd.DataFrame, quantity: str = "log10_error_signal_norm") -> Figure:
    """The norm of `quantity` against layer, a panel per initialiser or gate bias (and activation), a line per depth;
    of the error signal, dashed, what infinitely wide nets of the same last norm would show."""
    frame = with_family(frame)
    panels = frame[["panel", "family"]].drop_duplicates()
    columns = 4 if frame["panel"].nunique() == 1 else frame["family"].nunique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), columns)
        colors = depth_colors(frame)
        for ax, (_, (panel, family)) in zip(axes, panels.iterrows(), strict=False):
            rows = frame[(frame["panel"] == panel) & (frame["family"] == family)]
            for depth, part in rows.groupby("depth"):
                median_and_band(ax, part, "layer", quantity, color=colors[depth])
                if quantity == "log10_error_signal_norm":
                    predicted = predicted_error_signal(part)
                    ax.plot(predicted.index, predicted, color="black", ls=(0, (2, 2)), lw=0.7)
            ax.set_title(title_of(panels, panel, family))
        words = " (dashed: theory, infinite width)" if quantity == "log10_error_signal_norm" else ""
        finish(figure, axes, len(panels), f"layer (1 is next to the input){words}", LABELS[quantity])
        legend(figure, {f"{depth}": color for depth, color in colors.items()}, frame)
    return figure


def slope_by_depth(frame: pd.DataFrame) -> Figure:
    """Change of ln ||error signal||^2 per layer on the way back, against depth, a line per initialiser or gate bias;
    dashed what infinitely wide nets would show, in the legend how far the deepest nets are from that."""
    slopes = with_family(with_predicted_slopes(backward_slopes(frame), frame))
    panels = slopes["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=3.7, width=4.6)
        for ax, panel in zip(axes, panels, strict=False):
            rows = slopes[slopes["panel"] == panel]
            for (family, part), style in zip(rows.groupby("family", sort=False), line_styles(), strict=False):
                median_and_band(ax, part, "depth", "slope", label=f"{family}{gap_in_words(part)}", **style)
                predicted = part.groupby("depth")["predicted"].first()
                ax.plot(predicted.index, predicted, color=style["color"], ls="--", lw=1)
            ax.axhline(0, color="0.3", lw=0.8)
            ax.set_title(panel)
            depth_axis(ax, rows["depth"])
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=7, frameon=False)
        finish(figure, axes, len(panels), "depth (hidden layers)", "Δ ln ‖∂L/∂h‖² per layer towards the input")
        figure.suptitle("dashed: theory at infinite width; in brackets: mean less theory ± s.e. at the largest depth",
                        fontsize=9)
    return figure


def gap_in_words(slopes: pd.DataFrame) -> str:
    """Mean slope less the prediction, with its standard error, of the deepest nets."""
    deepest = slopes[slopes["depth"] == slopes["depth"].max()]
    gap, error = (deepest["slope"] - deepest["predicted"]).mean(), deepest["slope"].sem()
    return f" ({gap:+.2g} ± {error:.1g})" if np.isfinite(gap) and np.isfinite(error) else ""


def spectrum_by_depth(frame: pd.DataFrame) -> Figure:
    """log10 singular values of the Jacobian by rank, a panel per family, a line per depth; a rank that most nets of a
    family lack is not drawn."""
    frame = with_family(frame)
    frame = frame.assign(
        quantile=(frame["rank"] - 0.5) / frame["width"],
        log10_s=frame["log_singular_value"] / math.log(10),
    )
    panels = frame[["panel", "family"]].drop_duplicates()
    columns = 4 if frame["panel"].nunique() == 1 else frame["family"].nunique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), columns)
        colors = depth_colors(frame)
        for ax, (_, (panel, family)) in zip(axes, panels.iterrows(), strict=False):
            rows = frame[(frame["panel"] == panel) & (frame["family"] == family)]
            for depth, part in rows.groupby("depth"):
                median_and_band(ax, part, "quantile", "log10_s", color=colors[depth])
            ax.set_title(title_of(panels, panel, family))
        finish(figure, axes, len(panels), "rank / width (largest first)", "log$_{10}$ singular value")
        legend(figure, {f"{depth}": color for depth, color in colors.items()}, frame)
    return figure


def condition_by_depth(frame: pd.DataFrame) -> Figure:
    """log10 of the ratio of the largest to the smallest non-zero singular value against depth."""
    by_sample = [name for name in frame.columns if name not in ("rank", "log_singular_value")]
    finite = frame[np.isfinite(frame["log_singular_value"])]
    spread = finite.groupby(by_sample, dropna=False, sort=False)["log_singular_value"].agg(np.ptp) / math.log(10)
    spread = with_family(spread.rename("log10_condition").reset_index())
    panels = spread["panel"].unique()
    with mpl.rc_context(STYLE):
        figure, axes = grid_of_axes(len(panels), min(len(panels), 2), height=3.2, width=4.6)
        for ax, panel in zip(axes, panels, strict=False):
            rows = spread[spread["panel"] == panel]
            for (family, part), style in zip(rows.groupby("family", sort=False), line_styles(), strict=False):
                median_and_band(ax, part, "depth", "log10_condition", label=family, **style)
            ax.set(title=panel, yscale="log")
            depth_axis(ax, rows["depth"])
            ax.legend(loc="best")
        finish(figure, axes, len(panels), "depth (hidden layers)", "log$_{10}$ condition number (non-zero part)")
    return figure


def spectrum_by_route(frame: pd.DataFrame) -> Figure:
    """All singular values of one net three ways: multiplied out in float32 and float64, and by the product route."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        ax = figure.subplots()
        labels = {"float32": "multiplied out, float32", "float64": "multiplied out, float64", "product": "flowstudy"}
        for (route, label), style in zip(labels.items(), line_styles(), strict=False):
            rows = frame[(frame["route"] == route) & np.isfinite(frame["log_singular_value"])]
            ax.plot(rows["rank"], rows["log_singular_value"] / math.log(10), label=label, lw=1.2, **style)
        cell = frame.iloc[0]
        ax.set(title=f"{cell['net']} {cell['activation']}, depth {cell['depth']}, width {cell['width']}",
               xlabel="rank (1 is the largest)", ylabel="log$_{10}$ singular value")
        ax.legend()
    return figure


def lyapunov_exponents(frame: pd.DataFrame) -> Figure:
    """ln singular value per layer of linear Gaussian nets against rank, and Newman's exact limit of infinite depth.

    At finite depth the exponents have a bias, which the gap shows; their sum has none, and its z is the distance of
    the mean over nets from the exact value in exact standard errors.
    """
    layers = frame["depth"] - 1  # of the body
    frame = frame.assign(exponent=frame["log_singular_value"] / layers)
    width = int(frame["width"].iloc[0])
    limit = theory.lyapunov_exponents(width)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        ax = figure.subplots()
        for depth, color in depth_colors(frame).items():
            rows = frame[frame["depth"] == depth]
            gap = rows.groupby("rank")["exponent"].mean().to_numpy() - limit
            label = f"depth {depth}: rms gap {np.sqrt((gap**2).mean()):.2g}, sum z = {volume_z(rows, depth - 1):+.1f}"
            median_and_band(ax, rows, "rank", "exponent", color=color, label=label)
        error = np.sqrt(theory.lyapunov_variance(width) / (frame["depth"].max() - 1))
        ax.fill_between(range(1, width + 1), limit - error, limit + error, color="0.3", alpha=0.25, lw=0, zorder=3,
                        label=f"one net's exact standard deviation, depth {frame['depth'].max()}")
        ax.plot(range(1, width + 1), limit, color="black", ls="--", lw=1, label="Newman 1986, infinite depth")
        ax.set(title=f"linear Gaussian nets, width {width}", xlabel="rank (1 is the largest)",
               ylabel="ln singular value per layer  [nats]")
        ax.legend(fontsize=8)
    return figure


def volume_z(rows: pd.DataFrame, layers: int) -> float:
    """Mean over nets of the sum of log singular values, from its exact mean, in exact standard errors."""
    sums = rows.groupby(["cell", "sample"])["log_singular_value"].sum()
    mean, variance = theory.sum_log_singular_values(int(rows["width"].iloc[0]), layers)
    return float((sums.mean() - mean) / np.sqrt(variance / rows["cell"].nunique()))


def trainability_map(frame: pd.DataFrame, axis: str = "weight_var", accuracy: str = "test_accuracy") -> Figure:
    """Accuracy after training over depth and `axis`, and the depth that theory allows drawn over it.

    Plain tanh nets over "weight_var": 6 xi_c, six depth scales of the correlation of two inputs (Schoenholz et al.
    2017, figure 5).  Highway nets over "gate_bias": the rule b_T = -ln(2 L - 1).  A run that diverged counts as chance.
    """
    frame = frame.assign(weight_var=frame["gain"] ** 2, right=frame[accuracy].fillna(1 / CLASSES))
    table = frame.pivot_table(index="depth", columns=axis, values="right", aggfunc="median")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.subplots()
        picture = ax.pcolormesh(table.columns, table.index, table, shading="nearest", cmap="viridis", vmin=0, vmax=1)
        figure.colorbar(picture, label=f"{accuracy.replace('_', ' ')}, median over seeds")
        x, depth, label = allowed_depth(frame, axis)
        ax.plot(x, depth, color="white", lw=3.0)
        ax.plot(x, depth, color="crimson", lw=1.6, label=label)
        edges = ax.get_xlim(), (table.index.min() * 0.8, table.index.max() * 1.25)
        ax.set(xlim=edges[0], ylim=edges[1], yscale="log", ylabel="depth (hidden layers)",
               xlabel={"weight_var": r"weight variance $\sigma_w^2$", "gate_bias": "gate bias $b_T$"}[axis])
        ax.set_yticks(table.index, [f"{d}" for d in table.index])
        ax.minorticks_off()
        ax.grid(visible=False)
        cell = frame.iloc[0]
        ax.set_title(f"{cell['net']} {cell['activation']}, width {cell['width']}, {cell['dataset']}, "
                     f"{cell['epochs']} epochs")
        ax.legend(loc="upper right" if axis == "weight_var" else "lower left")
    return figure


def allowed_depth(frame: pd.DataFrame, axis: str) -> tuple[np.ndarray, np.ndarray, str]:
    """The curve that theory draws: along `axis`, the largest depth it expects to train."""
    if axis == "gate_bias":
        depth = np.geomspace(max(2, frame["depth"].min()), frame["depth"].max(), 100).round().astype(int)
        return theory.suggest_gate_bias(depth - 1), depth, "rule $b_T = -\\ln(2L - 1)$"
    variance = np.linspace(frame["weight_var"].min(), frame["weight_var"].max(), 200)
    field = theory.mean_field(frame["activation"].iloc[0], variance, frame["bias_var"].iloc[0])
    return variance, 6 * field.xi_c, "six depth scales, $6 \\xi_c$"


def figure_1(frame: pd.DataFrame, top: int = 10) -> Figure:
    """The paper's figure 1: best training curves of plain | highway nets by depth | mean of the `top` settings.

    In the mean, a run that diverged counts as chance.

    Source: Srivastava et al. 2015, figure 1.
    """
    best = final_loss(frame)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        plain, highway, summary = figure.subplots(1, 3)
        highway.sharey(plain)
        colors = depth_colors(frame)
        for ax, net in ((plain, "plain"), (highway, "highway")):
            for depth, runs in best[best["net"] == net].groupby("depth"):
                if runs["final"].notna().any():
                    curve = frame[frame["cell"] == runs.loc[runs["final"].idxmin(), "cell"]]
                    ax.plot(curve["epoch"], curve["loss"], color=colors[depth], lw=1.6, label=f"depth {depth}")
            ax.set(title=f"best of {runs_per_net(best, net)} runs, {net}", xlabel="epoch", yscale="log")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.legend(loc="lower left")
        for net, marker in (("plain", "o"), ("highway", "s")):
            rows = best[best["net"] == net].fillna({"final": CHANCE})
            mean = rows.groupby("depth")["final"].apply(lambda losses: losses.nsmallest(top).mean())
            color = sns.color_palette("colorblind")[net == "plain"]
            summary.plot(mean.index, mean, marker=marker, label=net, color=color)
        depth_axis(summary, frame["depth"])
        summary.set(title=f"mean of the best {top} settings", xlabel="depth (hidden layers)", yscale="log")
        for ax in (plain, highway, summary):
            ax.axhline(CHANCE, color="0.4", lw=0.8, ls=":")
        summary.annotate("chance", (1, CHANCE), xycoords=("axes fraction", "data"), xytext=(-4, -3),
                         textcoords="offset points", ha="right", va="top", color="0.35", fontsize=9)
        summary.legend(loc="best")
        plain.set_ylabel("mean training cross-entropy  [nats]")
    return figure


# --- what results draw of themselves ---------------------------------------------------------------------------------

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


def widen(ax: Axes, decades: float) -> None:
    """The y axis shows at least so many decades: a small fluctuation looks small."""
    log = ax.get_yscale() == "log"
    low, high = np.log10(ax.get_ylim()) if log else ax.get_ylim()
    add = max(0.0, decades - (high - low)) / 2
    ax.set_ylim(*(10.0 ** np.array([low - add, high + add]) if log else (low - add, high + add)))


TRAINING_PANELS = {  # column: title, unit, whether the column is a logarithm already
    "log10_weight_gradient_norm": ("weight gradient, before clipping", "log$_{10}$ ‖∂L/∂W‖", True),
    "log10_clipped_gradient_norm": ("weight gradient, as the optimizer was given it", "log$_{10}$ ‖∂L/∂W‖", True),
    "update_to_weight": ("update to weight", "log$_{10}$ ‖ΔW‖ / ‖W‖", False),
    "log10_error_signal_norm": ("error signal at the layer's output", "log$_{10}$ ‖∂L/∂h‖", True),
    "activation_mean_square": ("activation", "log$_{10}$ mean square", False),
}
STEPS_DRAWN = 250  # more would be narrower than two pixels


def training_heat_map(frame: pd.DataFrame) -> Figure:
    """A whole training run: layers x steps, a panel per recorded quantity.  Black is an exact 0, grey not a number."""
    steps = np.unique(frame["step"])
    drawn = steps[np.unique(np.linspace(0, len(steps) - 1, STEPS_DRAWN).round().astype(int))] if len(steps) else steps
    panels = [name for name in TRAINING_PANELS if name in frame.columns]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(7.2, 1.55 * len(panels) + 0.5), layout="constrained")
        axes = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for ax, name in zip(axes, panels, strict=True):
            table = frame[frame["step"].isin(drawn)].pivot(index="layer", columns="step", values=name)
            title, unit, is_log = TRAINING_PANELS[name]
            ax.set_title(title, loc="left")
            if table.size:
                heat_map(ax, table if is_log else log10(table), unit)
        axes[-1].set_xlabel("step (updates before it)")
        figure.supylabel("layer (1 is the first)", fontsize=10)
    return figure


def heat_map(ax: Axes, table: pd.DataFrame, unit: str) -> None:
    finite = table.to_numpy()[np.isfinite(table)]
    low, high = np.quantile(finite, [0.005, 0.995]) if len(finite) else (0.0, 1.0)
    colors = mpl.colormaps["viridis"].resampled(64).with_extremes(under="black", bad="0.8")  # 64: a smaller file
    zero = table.to_numpy() == -np.inf
    values = np.where(zero, low - 1, np.clip(table, low, high))  # below the range: black
    image = ax.pcolormesh(edges(table.columns), edges(table.index), values, cmap=colors, vmin=low,
                          vmax=max(high, low + 1e-3), rasterized=True)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.figure.colorbar(image, ax=ax, pad=0.01, aspect=12, ticks=MaxNLocator(4)).set_label(unit, fontsize=9)


def log10(table: pd.DataFrame) -> pd.DataFrame:
    with np.errstate(divide="ignore"):
        return np.log10(table)


def edges(centres: pd.Index) -> np.ndarray:
    """Half-way between the centres, and as far beyond the ends."""
    x = centres.to_numpy(dtype=float)
    between = (x[1:] + x[:-1]) / 2
    first, last = (between[0], between[-1]) if len(x) > 1 else (x[0] + 0.5, x[0] - 0.5)
    return np.concatenate([[2 * x[0] - first], between, [2 * x[-1] - last]])


# --- from rows to what is drawn --------------------------------------------------------------------------------------


def backward_slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per net, `slope` the least-squares slope of ln ||error signal||^2 over the layers, towards the input."""
    norm = frame["log10_error_signal_norm"]
    log_square = 2 * math.log(10) * norm.where(np.isfinite(norm))
    rows = frame.assign(y=log_square, x=frame["layer"].where(log_square.notna()).astype(float))
    x, y = (rows[v] - rows.groupby("cell")[v].transform("mean") for v in ("x", "y"))
    sums = pd.DataFrame({"cell": rows["cell"], "xy": x * y, "xx": x * x}).groupby("cell", sort=False).sum()
    return frame.drop_duplicates("cell").assign(slope=lambda nets: nets["cell"].map(-sums["xy"] / sums["xx"]))


def final_loss(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per run; `final` is the loss after its last epoch, nan where it diverged."""
    last = frame[frame["epoch"] == frame.groupby("cell")["epoch"].transform("max")]
    return last.rename(columns={"loss": "final"})


def runs_per_net(best: pd.DataFrame, net: str) -> int:
    return int(best[best["net"] == net].groupby("depth").size().max() or 0)


def with_family(frame: pd.DataFrame) -> pd.DataFrame:
    """`family` names the initialiser, or a highway net's gate bias; `panel` the kind of net and its activation."""
    names = LABELS["init"]
    family = [
        rf"$b_T$ = {row.gate_bias:g}" if row.net == "highway"
        else names.get(row.init, row.init) + ("" if pd.isna(row.gain) else f" (gain {row.gain:.3g})")
        for row in frame[["net", "gate_bias", "init", "gain"]].drop_duplicates().itertuples()
    ]
    kinds = frame[["net", "gate_bias", "init", "gain"]].drop_duplicates().assign(family=family)
    # Nets that differ in gain alone are told apart by activation where that explains the gain.
    return frame.merge(kinds, how="left").assign(panel=lambda rows: rows["net"] + " " + rows["activation"])


# --- drawing ---------------------------------------------------------------------------------------------------------


def median_and_band(ax: Axes, rows: pd.DataFrame, x: str, y: str, **style: object) -> None:
    """The median over nets (and samples), and the band between the quantiles of `BAND`."""
    grouped = rows.groupby(x)[y]
    middle, low, high = grouped.median(), grouped.quantile(BAND[0]), grouped.quantile(BAND[1])
    shown = np.isfinite(middle)
    ax.plot(middle.index[shown], middle[shown], lw=1.5, **style)
    # Where some nets have lost the rank (-inf), the band opens downwards: off the axes, which the medians set.
    ax.fill_between(middle.index[shown], low[shown], high[shown], color=style["color"], alpha=0.2, lw=0)


def title_of(panels: pd.DataFrame, panel: str, family: str) -> str:
    return family if panels["panel"].nunique() == 1 else f"{family}, {panel}"


def depth_colors(frame: pd.DataFrame) -> dict[int, tuple]:
    depths = sorted(frame["depth"].unique().tolist())
    return dict(zip(depths, sns.color_palette("viridis", len(depths) + 1)[:-1][::-1], strict=True))  # dark is deep


def line_styles() -> list[dict]:
    """Told apart by colour, and by marker where colour fails."""
    return [{"color": color, "marker": marker, "ms": 4}
            for color, marker in zip(sns.color_palette("colorblind"), "osD^vP*X<>", strict=False)]


def grid_of_axes(panels: int, columns: int, height: float = 2.3, width: float = 2.7) -> tuple[Figure, list[Axes]]:
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(max(columns * width, 5.4), rows * height + 0.5), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)


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


def each(frames: Mapping[str, pd.DataFrame], name: str, plot: Callable[..., Figure],
         *args: object) -> dict[str, Figure]:
    """The same plot of several frames: {"<name>_<key>": figure}."""
    return {f"{name}_{key}": plot(frame, *args) for key, frame in frames.items()}


# --- keeping ---------------------------------------------------------------------------------------------------------


def save(figures: Mapping[str, Figure], frames: Mapping[str, pd.DataFrame], folder: str | os.PathLike) -> None:
    """Write each figure as <name>.png and <name>.pdf, and the data behind them as <name>.parquet, whole or not at all.

    The same figures give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for kind, options in {"png": {"dpi": 110}, "pdf": {"metadata": {"CreationDate": None}}}.items():
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, **options)
            write_whole(folder / f"{name}.{kind}", picture.getvalue())
    for name, frame in frames.items():
        write_whole(folder / f"{name}.parquet", frame.to_parquet(index=False))


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name, then rename: nobody ever sees half a file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
