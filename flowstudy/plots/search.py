"""Plots of a whole random search: how many runs train, which gate bias trains at which depth, and how far the best
settings come when they are trained again."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import a_real, check_frame, takes
from flowstudy.paper.published import EPOCHS, FIGURE_1

from .message import capital, count, data_of, number, speak
from .style import LOST, STYLE, WIDTH, depth_axis, depth_colors, draw_chance, halo, label_end, net_color
from .training import CHANCE, DASHES, final_loss, gate_bias_rules, how_long, runs_per_net

Z = 1.96  # half-width of the 95 % intervals, in standard errors


@takes(loss=check_frame, threshold=a_real("positive and finite"))
def which_runs_train(loss: pd.DataFrame, threshold: float = 1e-3) -> Figure:
    """Left, the share of runs that train by depth; right, the final loss of highway runs by depth and gate bias.

    The share has 95 % Wilson intervals.  The right part has a panel per activation, since the bias at which runs train
    depends on it, with both rules of `theory.suggest_gate_bias` as lines.

    Args:
        loss: from `run(measure="training_loss")` of a random search.
        threshold: a run trains if its final loss [nats] is below this.

    Returns:
        The Figure, its message above and its caption below.
    """
    final = final_loss(loss)
    highway = final[final["net"] == "highway"]
    activations = sorted(highway["activation"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        share, *panels = figure.subplots(1, 1 + len(activations), width_ratios=[0.9] + [1.0] * len(activations))
        for net, place in (("plain", 0.97), ("highway", 1.03)):
            draw_share(share, final[final["net"] == net], net, threshold, place)
        depth_axis(share, final["depth"])
        share.set(title=f"share of runs with a loss below {threshold:g}", xlabel="depth (hidden layers)",
                  ylim=(-0.03, 1.03), yticks=np.linspace(0, 1, 6))
        lowest = highway["final"].min()
        for ax, activation in zip(panels, activations, strict=True):
            dots = loss_by_gate_bias(ax, highway[highway["activation"] == activation], lowest)
        for ax in panels[1:]:
            ax.sharey(panels[0])
            ax.tick_params(labelleft=False)
        if panels:
            panels[0].set_ylabel("gate bias $b_T$ at the start")
            figure.colorbar(dots, ax=panels, label="log$_{10}$ final training loss")
        return speak(figure, shares_in_words(final, threshold),
                     f"{count(runs_per_net(final, 'plain'), 'run')} of each net and depth on {data_of(loss)}, "
                     f"{how_long(final)}, settings drawn at random; bars: 95 % Wilson intervals "
                     "of the share. Right: a dot is a highway run, side by side where they share depth and bias, dark "
                     "where the loss is low; cross: diverged. Lines: the bias at which the squared gradient loses a "
                     "factor e, solid -ln(2 L - 1), the late layers' rate, dashed over the whole net; below them "
                     "gates are closed enough.")


def draw_share(ax: Axes, final: pd.DataFrame, net: str, threshold: float, place: float) -> None:
    """Draw the share of trained runs at `place` times the depth, so that two kinds of net stand side by side."""
    counted = trained(final, threshold)
    low, high = wilson(*counted.to_numpy(dtype=float).T)
    middle = (counted["trained"] / counted["runs"]).to_numpy()
    ax.errorbar(counted.index * place, middle, [middle - low, high - middle], marker="o" if net == "plain" else "s",
                ms=4, capsize=2, color=net_color(net))
    label_end(ax, middle[-1], net, net_color(net))


def trained(final: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """For each depth, the number of runs that end below the threshold, and the number of all runs."""
    return final.groupby("depth")["final"].agg(trained=lambda x: int((x < threshold).sum()), runs="size")


def shares_in_words(final: pd.DataFrame, threshold: float) -> str:
    """How many of the deepest runs of both kinds train."""
    depth = final["depth"].max()
    found = [trained(final[final["net"] == net], threshold).loc[depth] for net in ("highway", "plain")]
    highway, plain = (f"{row['trained']} of {row['runs']}" for row in found)
    return (f"At {depth} layers {highway} highway runs and {plain} plain runs end below a training loss of "
            f"{number(threshold)}; which do depends on the gate bias.")


@takes(loss=check_frame)
def best_settings(loss: pd.DataFrame) -> Figure:
    """Training loss [nats] by epoch, plain and highway nets in a panel each: a colour per depth, a line per seed.

    On MNIST a triangle at the right edge shows where the authors' best run of that depth ended.

    Args:
        loss: from `run(paper.best_settings.best_settings(...), measure="training_loss")`.

    Returns:
        The Figure, its message above and its caption below.

    Source: Srivastava et al. 2015, figure 1; the authors' search tables.
    """
    nets = [net for net in ("plain", "highway") if (loss["net"] == net).any()]
    on_mnist = loss["dataset"].iloc[0] == "mnist"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        for ax, net in zip(figure.subplots(1, len(nets), sharey=True, squeeze=False)[0], nets, strict=True):
            draw_runs(ax, loss, net, on_mnist)
            draw_chance(ax, CHANCE)
            ax.set(title=f"{net} nets", xlabel="epoch", xlim=(0, loss["epoch"].max()))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        figure.axes[0].set_ylabel("training loss  [nats per sample]")
        seeds = count(loss.groupby(["net", "depth"])["cell"].nunique().max(), "seed")
        theirs = (f" Triangles: where the authors' best of 100 runs of each depth ended after {EPOCHS} epochs."
                  if on_mnist else "")
        return speak(figure, ends_of_deepest(loss),
                     f"The best setting of each depth in the authors' search, trained on {data_of(loss)} for "
                     f"{how_long(loss)}; every line is one net, {seeds} of each. Dotted: chance.{theirs}")


def draw_runs(ax: Axes, loss: pd.DataFrame, net: str, on_mnist: bool) -> None:
    colors = depth_colors(loss)
    of_net = loss[loss["net"] == net].groupby("depth")
    for (depth, rows), dashes in zip(of_net, DASHES * len(colors), strict=False):
        for _, run in rows.groupby("cell"):
            ax.plot(run["epoch"], run["loss"], color=colors[depth], lw=1.2, ls=dashes)
        label_end(ax, final_loss(rows)["final"].median(), f"{depth} layers", colors[depth])
        theirs = FIGURE_1[(FIGURE_1["net"] == net) & (FIGURE_1["depth"] == depth)]["best"]
        if on_mnist and len(theirs):
            ax.plot([1], theirs, marker="<", ms=7, ls="", color=colors[depth], clip_on=False,
                    transform=ax.get_yaxis_transform())


def ends_of_deepest(loss: pd.DataFrame) -> str:
    """A sentence: the median loss after the last epoch of the deepest nets of each kind."""
    last = final_loss(loss).fillna({"final": CHANCE})
    depth = last["depth"].max()
    medians = last[last["depth"] == depth].groupby("net")["final"].median()
    words = " and ".join(f"{number(medians[net])} with {net} nets" for net in ("highway", "plain") if net in medians)
    return f"By the authors' best settings for {depth} layers, training ends at a loss of {words}."


@takes(loss=check_frame)
def training_curve(loss: pd.DataFrame) -> Figure:
    """Training loss [nats] by epoch, a line per net; dotted: the loss of a net that guesses.

    Args:
        loss: from `run(measure="training_loss")`.

    Returns:
        The Figure, its message above and its caption below.
    """
    last = final_loss(loss)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        ax = figure.subplots()
        for _, rows in loss.groupby("cell", sort=False):
            cell = rows.iloc[0]
            ax.plot(rows["epoch"], rows["loss"], marker="o" if cell["net"] == "plain" else "s", ms=4,
                    color=net_color(cell["net"]))
            rate = f", rate {cell['learning_rate']:g}" if (last["net"] == cell["net"]).sum() > 1 else ""
            label_end(ax, rows["loss"].iloc[-1], f"{cell['net']}{rate}", net_color(cell["net"]))
        draw_chance(ax, CHANCE)
        ax.set(xlabel="epoch", ylabel="training loss  [nats per sample]", yscale="log", xlim=(0, loss["epoch"].max()))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        return speak(figure, ends_in_words(last), "Every line is one net, one seed, trained on "
                     f"{data_of(loss)}: {'; '.join(map(run_in_words, last.itertuples()))}. Dotted: chance, "
                     f"{number(CHANCE)} nats.")


def ends_in_words(last: pd.DataFrame) -> str:
    """A sentence: the final loss of the best run of each kind of net."""
    words = []
    for net, runs in last.groupby("net", sort=False):
        runs_of = f", the best of {len(runs)}," if len(runs) > 1 else ""
        ends = "diverges" if runs["final"].isna().all() else f"ends at a loss of {number(runs['final'].min())}"
        words.append(f"a {net} net of {count(runs['depth'].max(), 'layer')}{runs_of} {ends}")
    sentence = f"{'; '.join(words)}; chance is {number(CHANCE)}."
    return capital(sentence)


def run_in_words(run: object) -> str:
    gates = "" if pd.isna(run.gate_bias) else f", gate bias {number(run.gate_bias)}"
    return f"{run.net} {run.activation}, width {run.width}{gates}, learning rate {run.learning_rate:g}"


def loss_by_gate_bias(ax: Axes, highway: pd.DataFrame, lowest: float) -> PathCollection:
    """Draw a dot per run of one activation; runs of equal depth and bias stand side by side, the best in front."""
    rows = highway.sort_values("final", ascending=False, na_position="first")
    place = rows.groupby(["depth", "gate_bias"]).cumcount() - (
        rows.groupby(["depth", "gate_bias"])["final"].transform("size") - 1) / 2
    most = rows.groupby(["depth", "gate_bias"]).size().max()
    x, died = rows["depth"] * (1.5 ** (place / max(most, 7))), rows["final"].isna()
    dots = ax.scatter(x[~died], rows["gate_bias"][~died], c=np.log10(rows["final"][~died].astype(float)),
                      cmap="viridis", vmin=math.log10(lowest), vmax=math.log10(CHANCE), s=36, edgecolors="0.3",
                      linewidths=0.6, zorder=3)
    ax.scatter(x[died], rows["gate_bias"][died], marker="x", color=LOST, s=30, zorder=3)
    low, high = rows["depth"].min(), rows["depth"].max()
    for bias, depths, style in gate_bias_rules(rows, float(max(2, low * 0.8)), float(high * 1.2)):
        ax.plot(depths, bias, **{"color": "black", "lw": 1.2, "path_effects": halo(2.4)} | style)
    depth_axis(ax, rows["depth"])
    ax.set(title=f"highway runs, {rows['activation'].iloc[0]}", xlabel="depth (hidden layers)")
    return dots


def wilson(successes: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share, which is good for few runs too, and for none or all of them."""
    share, scale = successes / runs, 1 + Z**2 / runs
    middle = (share + Z**2 / (2 * runs)) / scale
    half = Z / scale * np.sqrt(share * (1 - share) / runs + Z**2 / (4 * runs**2))
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)
