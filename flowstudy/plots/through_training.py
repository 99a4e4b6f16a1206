"""Does a net stay as well conditioned as it started?  Spectra and gradients against the epoch."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import check_frame, takes

from .message import count, listed, nets_of, number, plain_words, speak
from .style import LABELS, OTHER, REFERENCE, SCHEMES, STYLE, WIDTH, gate_colors

ROWS = {  # statistic: label, whether the axis is logarithmic
    "relative_variance": ("relative variance\nof squared singular values", True),
    "log10_condition": ("log$_{10}$ condition\nnumber", False),
    "slope": ("Δ ln ‖∂L/∂h‖² per layer\ntowards the input", False),
}
AT_CHANCE = 0.05  # a net has learnt if its loss has fallen by more than this share of its first value


@takes(statistics=check_frame)
def spectra_through_training(statistics: pd.DataFrame) -> Figure:
    """Relative variance of the squared singular values, condition number, and slope of the error signal by epoch.

    A column per depth, a colour per kind of net, a thin line per net, a thick one for their median.  Dashed: theory of
    the untrained nets.

    Args:
        statistics: from `through_training`.

    Returns:
        The Figure, its message above and its caption below.
    """
    kinds, depths = kinds_with_styles(statistics), sorted(statistics["depth"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
        axes = figure.subplots(len(ROWS), len(depths), sharex=True, squeeze=False)
        for (name, (label, is_log)), row in zip(ROWS.items(), axes, strict=True):
            for ax, depth in zip(row, depths, strict=True):
                rows = statistics[(statistics["statistic"] == name) & (statistics["depth"] == depth)]
                for words, (kind, style) in kinds.items():
                    draw_kind(ax, of_kind(rows, kind), style, words)
                ax.set_yscale("log" if is_log else "linear")
                ax.set_title(f"{depth} layers" if name == next(iter(ROWS)) else "")
                ax.set_xlim(statistics["epoch"].min(), statistics["epoch"].max())
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
                ax.set_xlabel("epoch" if name == list(ROWS)[-1] else "")
            row[0].set_ylabel(label)
            if name != "log10_condition":  # its panels differ by a hundred decades
                same_limits(row)
        handles = [Line2D([], [], **style) for _, style in kinds.values()]
        figure.legend(handles, kinds, loc="outside right center", frameon=False)
        return speak(figure, spread_in_words(statistics),
                     f"Tanh nets on {nets_of(statistics)} of each kind. Thin lines: single nets; thick: their median. "
                     "Relative variance: 0 for an isometry up to scale. Dashed: what theory says of the start, where "
                     "it says something. Condition numbers have an axis for each depth. A slope below 0 vanishes "
                     "towards the input.")


def same_limits(row: np.ndarray) -> None:
    limits = [ax.get_ylim() for ax in row]
    for ax in row:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for ax in row[1:]:
        ax.tick_params(labelleft=False)


def spread_in_words(statistics: pd.DataFrame) -> str:
    """A sentence on the deepest nets of each kind: the factor by which the relative variance changed in training."""
    depth = statistics["depth"].max()
    rows = statistics[(statistics["statistic"] == "relative_variance") & (statistics["depth"] == depth)]
    words = []
    for name, (kind, _) in kinds_with_styles(statistics).items():
        middle = of_kind(rows, kind).groupby("epoch")["measured"].median()
        if len(middle) and np.isfinite(middle.iloc[[0, -1]]).all():
            words.append(f"{number(middle.iloc[0])} to {number(middle.iloc[-1])} ({plain_words(name)})")
    last = count(int(statistics["epoch"].max()), "epoch")
    return (f"In {last} the relative variance of {depth} layers' squared singular values goes from "
            f"{', from '.join(words)}.")


@takes(loss=check_frame)
def training_curves(loss: pd.DataFrame) -> Figure:
    """Training loss [nats] by epoch: a column per depth, a colour per kind of net, a line per net.

    Args:
        loss: from `run(measure="training_loss")`.

    Returns:
        The Figure, its message above and its caption below.
    """
    kinds, depths = kinds_with_styles(loss), sorted(loss["depth"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots(1, len(depths), sharex=True, sharey=True, squeeze=False)[0]
        for ax, depth in zip(axes, depths, strict=True):
            rows = loss[loss["depth"] == depth].rename(columns={"loss": "measured"}).assign(predicted=np.nan)
            for words, (kind, style) in kinds.items():
                draw_kind(ax, of_kind(rows, kind), style, words)
            ax.set(title=f"{depth} layers", yscale="log", xlabel="epoch")
            ax.set_xlim(loss["epoch"].min(), loss["epoch"].max())
            stuck = [words for words, (kind, _) in kinds.items() if has_not_learnt(of_kind(rows, kind))]
            if stuck:
                ax.text(0.03, 0.03, "on the line at the top:\n" + "\n".join(stuck), va="bottom", fontsize=8.5,
                        color=REFERENCE, transform=ax.transAxes)
        axes[0].set_ylabel("training loss  [nats per sample]")
        handles = [Line2D([], [], **style) for _, style in kinds.values()]
        figure.legend(handles, kinds, loc="outside right center", frameon=False)
        return speak(figure, trained_in_words(loss),
                     f"Training cross-entropy of tanh nets on {nets_of(loss)} of each kind. Thin lines: single nets; "
                     "thick: their median. Nets that have not learnt lie on one line at chance.")


def has_not_learnt(rows: pd.DataFrame) -> bool:
    middle = rows.groupby("epoch")["measured"].median()
    return len(middle) > 1 and not middle.iloc[-1] < (1 - AT_CHANCE) * min(middle.iloc[0], np.log(10))


def trained_in_words(loss: pd.DataFrame) -> str:
    """A sentence on the deepest nets: which have learnt and which have not."""
    rows = loss[loss["depth"] == loss["depth"].max()].rename(columns={"loss": "measured"})
    stuck, learnt = [], []
    for name, (kind, _) in kinds_with_styles(loss).items():
        of = of_kind(rows, kind)
        if len(of):
            final = of.groupby("epoch")["measured"].median().iloc[-1]
            (stuck if has_not_learnt(of) else learnt).append(f"{plain_words(name)} ({number(final)})")
    words = [f"{listed(names)} {what}" for names, what in ((learnt, "train"), (stuck, "do not")) if names]
    return (f"At {loss['depth'].max()} layers, by the loss after {count(loss['epoch'].max(), 'epoch')}: "
            f"{'; '.join(words)}.")


def draw_kind(ax: Axes, rows: pd.DataFrame, style: dict, label: str) -> None:
    if rows.empty:
        return
    for _, net in rows.groupby("cell", sort=False):
        ax.plot(net["epoch"], net["measured"], color=style["color"], lw=0.6, alpha=0.5)
    median = rows.groupby("epoch")["measured"].median()
    ax.plot(median.index, median, lw=1.8, label=label, **style)
    predicted = rows["predicted"].dropna()
    if len(predicted) and np.isfinite(predicted.median()):
        ax.axhline(predicted.median(), color=style["color"], ls="--", lw=1.0)


def kinds_with_styles(frame: pd.DataFrame) -> dict[str, tuple[pd.Series, dict]]:
    """The kinds of net of a frame by what they are called, each with its colour and dashes."""
    gates = gate_colors(frame["gate_bias"])
    found = {}
    for _, kind in frame[["net", "init", "gate_bias"]].drop_duplicates().iterrows():
        gated = pd.notna(kind["gate_bias"])
        color = gates[kind["gate_bias"]] if gated else SCHEMES.get(kind["init"].split("_")[0], OTHER)
        found[kind_label(kind)] = kind, {"color": color, "marker": "osD^vP*X"[len(found) % 8], "ms": 4}
    return found


def of_kind(rows: pd.DataFrame, kind: pd.Series) -> pd.DataFrame:
    same = (rows["net"] == kind["net"]) & (rows["init"] == kind["init"])
    alike = rows["gate_bias"].isna() if pd.isna(kind["gate_bias"]) else rows["gate_bias"] == kind["gate_bias"]
    return rows[same & alike]


def kind_label(kind: pd.Series) -> str:
    if pd.isna(kind["gate_bias"]):
        return f"{kind['net']}, {LABELS['init'].get(kind['init'], kind['init'])}"
    return f"{kind['net']}, $b_T$ = {kind['gate_bias']:g}"
