"""Training of many nets: loss curves by depth, which depth trains, and the paper's convolutional nets."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from flowstudy import theory
from flowstudy.arguments import NAME, a_whole, check_frame, check_one_of, one_among, takes
from flowstudy.paper.conv_nets import PUBLISHED
from flowstudy.paper.published import FIGURE_1
from flowstudy.predictions import weight_var

from .message import count, data_of, listed, number, speak
from .style import STYLE, WIDTH, depth_axis, depth_colors, draw_chance, halo, label_end, net_color

CLASSES = 10
TRAINS = 0.5  # a net of the map counts as trained if its test accuracy is above this
DASHES = ("-", (0, (5, 1.5)), (0, (4, 1, 1, 1)), (0, (6, 1, 1, 1, 1, 1)))  # a depth or a net where colour fails
CHANCE = math.log(CLASSES)  # cross-entropy of a ten-class net that knows nothing [nats]


@takes(frame=check_frame, axis=one_among(("weight_var", "gate_bias")), accuracy=NAME)
def trainability_map(frame: pd.DataFrame, axis: str = "weight_var", accuracy: str = "test_accuracy") -> Figure:
    """Accuracy after training over depth and `axis`, and the depth that theory allows drawn over it.

    Plain tanh nets over "weight_var": 6 xi_c, six depth scales of the correlation of two inputs (Schoenholz et al.
    2017).  Highway nets over "gate_bias": both rules of `theory.suggest_gate_bias`.  A run that diverged counts as
    chance.

    Args:
        frame: from `run(measure="accuracy")`.
        axis: the cell's field along the second axis, "weight_var" or "gate_bias".
        accuracy: the column that is drawn.

    Returns:
        The Figure, its message above and its caption below.
    """
    check_one_of("trainability_map", "accuracy", accuracy, list(frame.columns))
    frame = frame.assign(weight_var=frame["gain"] ** 2, right=frame[accuracy].fillna(1 / CLASSES))
    table = frame.pivot_table(index="depth", columns=axis, values="right", aggfunc="median")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        ax = figure.subplots()
        picture = ax.pcolormesh(table.columns, table.index, table, shading="nearest", cmap="viridis_r", vmin=0,
                                vmax=1)  # dark is good in every picture
        figure.colorbar(picture, label=accuracy.replace("_", " "))
        for x, depth, style in allowed_depths(frame, axis):
            ax.plot(x, depth, **{"color": "black", "lw": 1.6, "path_effects": halo(3.6)} | style)
        edges = ax.get_xlim(), (table.index.min() * 0.8, table.index.max() * 1.25)
        ax.set(xlim=edges[0], ylim=edges[1], yscale="log", ylabel="depth (hidden layers)",
               xlabel={"weight_var": r"weight variance $\sigma_w^2$", "gate_bias": "gate bias $b_T$"}[axis])
        ax.set_yticks(table.index, [f"{d}" for d in table.index])
        ax.minorticks_off()
        ax.grid(visible=False)
        ax.text(0.02, 0.03, RULES[axis][0], transform=ax.transAxes, fontsize=9, path_effects=halo(3.0))
        cell = frame.iloc[0]
        seeds = count(frame["seed"].nunique(), "net") + (", the median shown" if frame["seed"].nunique() > 1 else "")
        return speak(figure, map_in_words(frame, axis),
                     f"Test accuracy after {count(cell['epochs'], 'epoch')} of {cell['net']} {cell['activation']} nets "
                     f"on {data_of(frame)}, width {cell['width']}, {seeds} a point; a run that diverged counts as "
                     f"chance. {RULES[axis][1]}")


RULES = {  # axis: where nets are predicted to train, what the lines are
    "gate_bias": ("left of the lines: predicted to train",
                  "Lines: the gate bias at which the squared gradient loses a factor e in L highway layers, solid by "
                  "the late layers' rate, -ln(2 L - 1), dashed over the whole net, by the recursion."),
    "weight_var": ("below the line: predicted to train",
                   "Line: six depth scales of the correlation of two inputs, 6 ξ_c (Schoenholz et al. 2017), which "
                   "ends where it has no value. It says what initialisation lets pass, not how many epochs that "
                   "takes."),
}


def map_in_words(frame: pd.DataFrame, axis: str) -> str:
    """How many nets on either side of the rule get more than half of the test set right."""
    if axis == "gate_bias":
        rule = {depth: theory.suggest_gate_bias(max(int(depth) - 1, 1)) for depth in frame["depth"].unique()}
        inside = frame["gate_bias"] <= frame["depth"].map(rule)
    else:
        cell = frame.iloc[0]
        field = theory.mean_field(cell["activation"], frame["weight_var"].to_numpy(), cell["bias_var"])
        inside = frame["depth"] <= 6 * field.xi_c
    trains = frame["right"] > TRAINS
    kind = f"{frame['net'].iloc[0]} {frame['activation'].iloc[0]} net"
    words = [f"{int(trains[side].sum())} of the {count(int(side.sum()), kind)} {where}"
             for side, where in ((inside, "that the rule expects to train"), (~inside, "that it does not"))
             if side.any()]
    deepest = frame.loc[trains, "depth"].max()
    limit = (f"; none deeper than {deepest} layers does in {count(frame['epochs'].iloc[0], 'epoch')}"
             if trains.any() and deepest < frame["depth"].max() else "")
    return f"More than {number(100 * TRAINS)} % of the test set is right for {' and '.join(words)}{limit}."


Curve = tuple[np.ndarray, np.ndarray, dict[str, object]]  # x, y, and how it is drawn


def allowed_depths(frame: pd.DataFrame, axis: str) -> list[Curve]:
    """The curves that theory draws: along `axis`, the largest depth it expects to train."""
    if axis == "gate_bias":
        return gate_bias_rules(frame, float(max(2, frame["depth"].min())), float(frame["depth"].max()))
    variance = np.linspace(frame["weight_var"].min(), frame["weight_var"].max(), 200)
    field = theory.mean_field(frame["activation"].iloc[0], variance, frame["bias_var"].iloc[0])
    return [(variance, 6 * field.xi_c, {})]


def gate_bias_rules(highway: pd.DataFrame, low: float, high: float) -> list[Curve]:
    """Gate bias and depth by both rules of `theory.suggest_gate_bias`, for the highway layers of nets of these depths
    and the runs' weights."""
    cell = highway.iloc[0]
    variance = weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])
    depths = np.unique(np.geomspace(low, high, 8).round().astype(int))
    rate = theory.suggest_gate_bias(depths - 1)
    whole = theory.suggest_gate_bias(depths - 1, "whole net", activation=cell["activation"], weight_var=variance,
                                     gate_weight_var=variance)
    return [(rate, depths, {}), (whole, depths, {"ls": "--"})]


@takes(frame=check_frame, top=a_whole(1))
def figure_1(frame: pd.DataFrame, top: int = 10) -> Figure:
    """The paper's figure 1: the mean final loss of the `top` settings by depth, and the best training curves.

    Left, the means of plain and of highway nets; small dots are the runs in a mean, and one that diverged counts as
    chance.  Middle and right, the best training curve of each depth, of plain and of highway nets.  On MNIST the means
    over the best 3 (if `top` is 3) or 10 of 100 settings in the authors' search tables are drawn as hollow marks.

    Args:
        frame: from `run(measure="training_loss")` of a random search.
        top: number of settings in the mean.

    Returns:
        The Figure, its message above and its caption below.

    Source: Srivastava et al. 2015, figure 1.
    """
    best = final_loss(frame)
    published = bool((frame["dataset"] == "mnist").all())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        summary, plain, highway = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
        highway.sharey(plain)
        for net in ("plain", "highway"):
            draw_best(summary, best[best["net"] == net], net, top, published=published)
        for ax, net in ((plain, "plain"), (highway, "highway")):
            draw_curves(ax, frame, best[best["net"] == net], net)
        depth_axis(summary, pd.concat([frame["depth"], FIGURE_1["depth"]]) if published else frame["depth"])
        summary.set(title=f"mean of the best {top} runs", xlabel="depth (hidden layers)", yscale="log",
                    ylabel="training loss  [nats per sample]")
        for ax in (plain, highway, summary):
            draw_chance(ax, CHANCE)
        tables = (f"; hollow, dotted: the authors' tables, mean of the best {top_published(top)} of 100 runs of 400 "
                  "epochs" if published else "")
        return speak(figure, depth_in_words(best, top),
                     f"Cross-entropy of training on {data_of(frame)} after {how_long(best)}. "
                     f"Left: lines are means of the {top} best of all runs, small dots those runs{tables}. Middle and "
                     "right: the best run of each depth. "
                     f"{'; '.join(search_in_words(best, net) for net in NETS_HERE)}; a run that diverged counts as "
                     "chance.")


NETS_HERE = ("plain", "highway")  # of the paper's figure 1
MARKS = {"plain": "o", "highway": "s"}


def depth_in_words(best: pd.DataFrame, top: int) -> str:
    """A sentence: the loss that the deepest nets reach, compared with the shallowest plain nets."""
    depth = best["depth"].max()
    plain, highway = (mean_of_best(best[(best["net"] == net) & (best["depth"] == depth)]["final"], top)
                      for net in NETS_HERE)
    return (f"At {depth} layers the best highway nets reach a training loss of {number(highway)}, the best plain nets "
            f"one that is {number(plain / highway)} times as large.")


def mean_of_best(final: pd.Series, top: int) -> float:
    return float(final.fillna(CHANCE).nsmallest(top).mean())


def draw_best(ax: Axes, runs: pd.DataFrame, net: str, top: int, *, published: bool) -> None:
    mean = runs.groupby("depth")["final"].apply(mean_of_best, top)
    ax.plot(mean.index, mean, marker=MARKS[net], color=net_color(net))
    for depth, finals in runs.groupby("depth")["final"]:
        some = finals.fillna(CHANCE).nsmallest(top)
        ax.plot([depth] * len(some), some, ls="", marker=".", ms=4, color=net_color(net), alpha=0.6)
    if len(mean):
        label_end(ax, mean.iloc[-1], net, net_color(net))
    if published:
        paper = FIGURE_1[FIGURE_1["net"] == net].set_index("depth")[f"best_{top_published(top)}"]
        ax.plot(paper.index, paper, marker=MARKS[net], mfc="white", ls=":", color=net_color(net))
        label_end(ax, paper.iloc[-1], f"authors' {net}", net_color(net))


def top_published(top: int) -> int:
    """Of the means in the authors' tables, over the best 3 or 10 runs, the one to stand beside a mean over `top`."""
    return 3 if top == 3 else 10


def draw_curves(ax: Axes, frame: pd.DataFrame, runs: pd.DataFrame, net: str) -> None:
    for (depth, of_depth), dashes in zip(runs.groupby("depth"), DASHES * len(runs), strict=False):
        if of_depth["final"].notna().any():
            curve = frame[frame["cell"] == of_depth.loc[of_depth["final"].idxmin(), "cell"]]
            color = depth_colors(frame)[depth]
            ax.plot(curve["epoch"], curve["loss"], color=color, lw=1.6, ls=dashes)
            label_end(ax, curve["loss"].iloc[-1], f"{depth} layers", color)
    ax.set(title=f"best run of each depth, {net}", xlabel="epoch", yscale="log", xlim=(0, frame["epoch"].max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def how_long(runs: pd.DataFrame, kinds: tuple[str, ...] = ("net", "depth")) -> str:
    """20 epochs, or 4 to 20 epochs where kinds of net were trained for different times."""
    last = runs.groupby(list(kinds))["epoch"].max()
    least, most = last.min(), last.max()
    return count(most, "epoch") if least == most else f"{least} to {count(most, 'epoch')}"


def search_in_words(runs: pd.DataFrame, net: str) -> str:
    """How many settings a kind of net had, and the learning rates they were drawn from, as far as they reach."""
    rates = runs.loc[runs["net"] == net, "learning_rate"]
    return f"{net}: {runs_per_net(runs, net)} runs a depth, learning rates {rates.min():.2g} to {rates.max():.2g}"


def final_loss(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per run; `final` is the loss after its last epoch, nan where it diverged."""
    return last_epochs(frame, ["cell"]).rename(columns={"loss": "final"})


def last_epochs(frame: pd.DataFrame, run: list[str]) -> pd.DataFrame:
    """The last row of each run, told apart by these columns."""
    return frame[frame["epoch"] == frame.groupby(run)["epoch"].transform("max")]


def runs_per_net(best: pd.DataFrame, net: str) -> int:
    return int(best[best["net"] == net].groupby("depth").size().max() or 0)


@takes(frame=check_frame)
def conv_training(frame: pd.DataFrame) -> Figure:
    """Training loss and test error of convolutional highway nets and their plain twins by epoch.

    There is a row of panels for each data set and learning rate, a line for each seed, and a dash pattern for each net.
    Dotted: the error of the paper's highway nets after their last epoch, on the paper's data sets.

    Args:
        frame: from `train.train_conv_nets` or `train.train_conv_study`.

    Returns:
        The Figure, its message above and its caption below.

    Source: Srivastava et al. 2015, tables 1 to 3.
    """
    dashes = dict(zip(frame["net"].unique(), DASHES * frame["net"].nunique(), strict=False))
    settings = frame.groupby(["dataset", "learning_rate"], sort=False)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.1 * len(settings)), layout="constrained")
        panels = figure.subplots(len(settings), 2, squeeze=False, sharey="col")
        for (setting, rows), axes in zip(settings, panels, strict=True):
            draw_setting(*axes, *setting, rows, dashes)
        seeds = frame["seed"].nunique()
        nets = f" Nets: {listed(frame['net'].unique())}, told apart by dashes." if len(dashes) > 1 else ""
        return speak(figure, twins_in_words(frame),
                     f"Convolutional net{'s' * (len(dashes) > 1)} {listed(frame['net'].unique())} on {data_of(frame)}, "
                     f"{how_long(frame, ('net', 'block'))}; every line is one net, {count(seeds, 'seed')} of each"
                     f"{', so nothing is said of their spread' if seeds == 1 else ''}. The loss is that of training, "
                     "with dropout; dotted: chance, and the paper's highway nets where the data set is theirs. A plain "
                     f"twin is as deep and has as many parameters.{nets}")


def twins_in_words(frame: pd.DataFrame) -> str:
    """The test error of highway nets and of their plain twins after the last epoch, by learning rate."""
    ends = last_epochs(frame, ["dataset", "learning_rate", "net", "block", "seed"])
    ends = ends.assign(error=100 * (1 - ends["test_accuracy"])).dropna(subset="error")
    trained = ends.groupby("block")["epoch"].max()
    gates = {block: words + (f" after {count(trained[block], 'epoch')}" if trained.nunique() > 1 else "")
             for block, words in (("highway", "with gates"), ("plain", "without")) if block in trained}
    every = ends.groupby(["learning_rate", "block"], sort=False)["error"].mean()
    errors = every.unstack().reindex(columns=["highway", "plain"]).dropna()
    words = [" and ".join(f"{number(row[block])} % {gates[block]}" for block in ("highway", "plain"))
             + (f" at learning rate {rate:g}" if len(errors) > 1 else "") for rate, row in errors.iterrows()]
    if not words:  # no rate at which both were trained: each at its own
        words = [" and ".join(f"{number(error)} % {gates[block]} at learning rate {rate:g}"
                              for (rate, block), error in every.items())]
    nets = f"{listed(frame['net'].unique())} on {data_of(frame)}"
    return f"Test error of {nets} " + (f"after training: {'; '.join(words)}." if any(words) else "by epoch.")


def draw_setting(loss: Axes, error: Axes, dataset: str, rate: float, frame: pd.DataFrame, dashes: dict) -> None:
    for (net, block, seed), rows in frame.groupby(["net", "block", "seed"], sort=False):
        style = {"color": net_color(block), "ls": dashes[net], "lw": 1.5}
        wrong = 100 * (1 - rows["test_accuracy"])
        loss.plot(rows["epoch"], rows["loss"], **style)
        error.plot(rows["epoch"], wrong, **style)
        if seed == frame["seed"].min():
            words = block if len(dashes) == 1 else f"{block}, {net}"
            label_end(loss, rows["loss"].iloc[-1], words, net_color(block))
            label_end(error, wrong.iloc[-1], words, net_color(block))
    for (_, published_on, net), accuracy in PUBLISHED.items():
        if net in dashes and published_on == dataset:
            error.axhline(100 - accuracy, color=net_color("highway"), ls=":", lw=1.2)
            # On the left, where the curves are still far above.
            error.annotate("paper", (0, 100 - accuracy), xycoords=("axes fraction", "data"), xytext=(4, 2),
                           textcoords="offset points", color=net_color("highway"), fontsize=9)
    if dataset != "cifar100":  # ten classes
        draw_chance(loss, CHANCE)
        draw_chance(error, 100 * (1 - 1 / CLASSES))
    for ax in (loss, error):
        ax.set(xlabel="epoch", yscale="log", xlim=(1, frame["epoch"].max()))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    loss.set(title=f"training, learning rate {rate:g}", ylabel="loss  [nats per sample]")
    error.set(title=f"test set of {dataset}, learning rate {rate:g}", ylabel="test error  [%]")
