"""Readings against outcomes: every net, ROC curves, and a table of the areas under them."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score, roc_curve

from flowstudy.arguments import check_frame, check_one_of, takes
from flowstudy.plots.message import capital, count, data_of, number, speak
from flowstudy.plots.style import CLASSES, NETS, OTHER, REFERENCE, ROUTES, STYLE, WIDTH

MARKS = {  # by family
    "plain": (NETS["plain"], "o"), "highway": (NETS["highway"], "s"), "residual": (NETS["residual"], "^"),
    "normed": (CLASSES[0], "D"), "convolutional": (CLASSES[2], "v"), "transformer": (OTHER, "P")}
OPTIMIZERS = {"momentum": "SGD with momentum", "adam": "Adam"}
TRAINED = 0.7  # accuracy above which nets count as trained
KERNEL, TRIAL, BOTH = ("the same and the loss at the start", "trial of 100 steps", "trial of 100 and remaining(10⁴)")
CURVES = {  # of the figure of ROC curves: words, colour, dashes
    BOTH: ("trial and kernel", "#000000", "-"), TRIAL: ("trial of 100 steps", NETS["plain"], "-"),
    KERNEL: ("kernel, loss at the start", NETS["highway"], "-"),
    "decades of the error signal": ("decades of the error signal", ROUTES["float32"], "--"),
    "synflow": ("synflow", NETS["residual"], "--"), "jacob_cov": ("jacob_cov", CLASSES[2], "-."),
}


@takes(scores=check_frame)
def predicted_against_trained(scores: pd.DataFrame, statistic: str = KERNEL) -> Figure:
    """Accuracy after training against one statistic of the start, a mark a net and a kind of mark a family; a panel per
    optimizer.

    Args:
        scores: of `outcomes.judged.scored`.
        statistic: one of its names.

    Returns:
        The Figure, its message above and its caption below.
    """
    check_one_of("predicted_against_trained", "statistic", statistic, list(scores["statistic"].unique()))
    shown = scores[scores["statistic"] == statistic].dropna(subset="score")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = panels(figure, shown)
        for ax, (_, nets) in zip(axes, shown.groupby("optimizer", sort=False), strict=True):
            ax.axhline(TRAINED, color=REFERENCE, lw=1.0, ls=":")
            for family, rows in nets.groupby("family", sort=False):
                color, mark = MARKS.get(family, (OTHER, "X"))
                ax.scatter(rows["score"], rows["accuracy"], s=26, marker=mark, color=color, label=family, alpha=0.75,
                           linewidths=0)
            ax.set(xlabel="read at the start: what remains, and the loss", ylim=(-0.03, 1.05))
        axes[0].set_ylabel("training accuracy at the best rate")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        return speak(figure, areas_in_words(shown), f"{training_of(shown)}, a mark each; left: predicted to train. "
                     f"Dotted: the accuracy of {TRAINED:g} above which a net counts as trained. Read at the start: "
                     "the share of the task that the tangent kernel, in Adam's metric, leaves after 10⁴ steps, and "
                     "0.05 for each decade by which the loss is too large.")


def panels(figure: Figure, scores: pd.DataFrame) -> list[Axes]:
    """One for each optimizer, named."""
    optimizers = list(scores["optimizer"].unique())
    axes = list(figure.subplots(1, len(optimizers), sharex=True, sharey=True, squeeze=False)[0])
    for ax, optimizer in zip(axes, optimizers, strict=True):
        ax.set_title(OPTIMIZERS.get(optimizer, optimizer))
    return axes


def training_of(scores: pd.DataFrame) -> str:
    """"102 nets of 6 families, trained on scikit-learn's digits for 300 steps at eight rates"."""
    nets = scores.drop_duplicates(["architecture", "start", "seed"])
    families = nets["family"].nunique()
    return (f"{count(len(nets), 'net')} of {families} {'family' if families == 1 else 'families'}, trained on "
            f"{data_of(nets)} for {count(nets['steps'].max(), 'step')} at the best of eight rates")


def area(nets: pd.DataFrame) -> float:
    """nan where all trained or none did."""
    if nets["trained"].nunique() < 2:
        return float("nan")
    return float(roc_auc_score(nets["trained"], -nets["score"].clip(-1e300, 1e300)))


def areas_in_words(scores: pd.DataFrame) -> str:
    words = []
    for optimizer, nets in scores.groupby("optimizer", sort=False):
        found, trained = area(nets), int(nets["trained"].sum())
        name = OPTIMIZERS.get(optimizer, optimizer)
        words.append(f"by {name} {trained} of {len(nets)} nets train" + (
            f", and the start ranks {number(100 * found, 3)} % of the pairs rightly" if found == found else ""))
    return f"{capital('; '.join(words))}."


@takes(scores=check_frame)
def roc(scores: pd.DataFrame) -> Figure:
    """ROC curves of the kernel, a trial, both, and what else is read at the start; a panel per optimizer.

    Args:
        scores: of `outcomes.judged.scored`.

    Returns:
        The Figure, its message above and its caption below.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = panels(figure, scores)
        for ax, (_, nets) in zip(axes, scores.groupby("optimizer", sort=False), strict=True):
            ax.plot([0, 1], [0, 1], color=REFERENCE, lw=1.0, ls=":")
            for statistic, (words, color, dashes) in CURVES.items():
                rows = nets[nets["statistic"] == statistic].dropna(subset="score")
                if rows["trained"].nunique() == 2:
                    wrong, right, _ = roc_curve(rows["trained"], -rows["score"].clip(-1e300, 1e300))
                    ax.plot(wrong, right, color=color, ls=dashes, lw=1.6, label=words)
            ax.set(xlabel="share of nets that did not train, said to train", xlim=(-0.01, 1.0), ylim=(0, 1.01),
                   aspect="equal")
        axes[0].set_ylabel("share of nets that trained, said to train")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        return speak(figure, winners_in_words(scores), f"{training_of(scores)}; a curve runs through all thresholds of "
                     "one statistic. Dotted: what knows nothing. Broken lines: rivals that read the net at its start. "
                     "The trial is the first 100 of the steps.")


def winners_in_words(scores: pd.DataFrame) -> str:
    """Areas of the trial, the kernel and both, and of the best of the rivals, for each optimizer."""
    words = []
    for optimizer, nets in scores.groupby("optimizer", sort=False):
        found = {name: area(nets[nets["statistic"] == name].dropna(subset="score")) for name in CURVES}
        rivals = {name: found[name] for name in list(CURVES)[3:] if found[name] == found[name]}
        if found[BOTH] != found[BOTH]:
            return f"The {count(len(nets) // nets['statistic'].nunique(), 'net')} had one outcome."
        best = max(rivals, key=rivals.get)
        words.append(f"{number(found[BOTH], 3)} by trial and kernel, {number(found[TRIAL], 3)} by the trial alone, "
                     f"{number(found[KERNEL], 3)} by the kernel alone and {number(rivals[best], 3)} by "
                     f"{CURVES[best][0]} ({OPTIMIZERS.get(optimizer, optimizer)})")
    return f"Share of pairs of nets ranked rightly: {'; '.join(words)}."


@takes(areas=check_frame)
def area_table(areas: pd.DataFrame) -> Figure:
    """Areas under the ROC curves of one optimizer: a row a statistic, a column a family, each with its 95 % interval.

    Args:
        areas: of `outcomes.judged.areas`, of one optimizer.

    Returns:
        The Figure, its message above and its caption below.
    """
    statistics, families = list(areas["statistic"].unique()), list(areas["family"].unique())
    cells = areas.set_index(["statistic", "family"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(statistics)), layout="constrained")
        ax = figure.subplots()
        table = cells["auc"].unstack()[families].loc[statistics]
        ax.pcolormesh(np.arange(len(families)), np.arange(len(statistics)), table, shading="nearest", cmap="Blues",
                      vmin=0.4, vmax=1.7)
        for i, statistic in enumerate(statistics):
            for j, family in enumerate(families):
                if (statistic, family) in cells.index:
                    ax.text(j, i, area_and_interval_in_words(cells.loc[statistic, family]), ha="center", va="center",
                            fontsize=7.5)
        ax.set(ylim=(len(statistics) - 0.5, -0.5))
        ax.set_yticks(range(len(statistics)), statistics, fontsize=8.5)
        ax.set_xticks(range(len(families)), [f"{family}\n{trained_of(areas, family)}" for family in families],
                      fontsize=8.5)
        ax.xaxis.tick_top()
        ax.grid(visible=False)
        whole = cells.xs("all", level="family")
        nets, optimizer = int(whole["nets"].max()), areas["optimizer"].iloc[0]
        return speak(figure, best_in_words(whole, optimizer),
                     f"{count(nets, 'net')} trained on {data_of(areas)} by {OPTIMIZERS.get(optimizer, optimizer)}: "
                     "share of the pairs, one net that trained and one that did not, that a statistic ranks rightly, "
                     "with 95 % intervals by the bootstrap over architectures. Under a family: how many trained. A "
                     "dash: the statistic has no value there, or all nets had one outcome.")


def area_and_interval_in_words(cell: pd.Series) -> str:
    if cell["auc"] != cell["auc"]:
        return "–"  # noqa: RUF001  a dash, as tables have it
    return f"{cell['auc']:.2f}  [{cell['low']:.2f}, {cell['high']:.2f}]"


def trained_of(areas: pd.DataFrame, family: str) -> str:
    largest = areas[areas["family"] == family].sort_values("nets").iloc[-1]
    return f"{largest['trained']} of {largest['nets']}"


def best_in_words(whole: pd.DataFrame, optimizer: str) -> str:
    known = whole.dropna(subset="auc")
    if known.empty:
        return f"All {int(whole['nets'].max())} nets had one outcome."
    everywhere = known[known["nets"] == known["nets"].max()]
    best, last = everywhere["auc"].idxmax(), everywhere["auc"].idxmin()
    return (f"{capital(OPTIMIZERS.get(optimizer, optimizer))}: of {len(everywhere)} statistics that every net has, "
            f"{best} ranks most pairs rightly, {number(100 * everywhere.loc[best, 'auc'], 3)} %, and {last} fewest, "
            f"{number(100 * everywhere.loc[last, 'auc'], 3)} %.")
