"""A whole training run in one picture: layers x steps."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowstudy.arguments import check_frame, takes

from .message import count, power_of_ten, speak
from .style import STYLE

TRAINING_PANELS = {  # column: title, unit, whether the column is a logarithm already
    "log10_weight_gradient_norm": ("weight gradient, before clipping", "log$_{10}$ ‖∂L/∂W‖", True),
    "log10_clipped_gradient_norm": ("weight gradient, as the optimizer was given it", "log$_{10}$ ‖∂L/∂W‖", True),
    "update_to_weight": ("update to weight", "log$_{10}$ ‖ΔW‖ / ‖W‖", False),
    "log10_error_signal_norm": ("error signal at the layer's output", "log$_{10}$ ‖∂L/∂h‖", True),
    "activation_mean_square": ("activation", "log$_{10}$ mean square", False),
}
STEPS_DRAWN = 250  # the most steps that are drawn; more would be narrower than two pixels each


@takes(frame=check_frame)
def training_heat_map(frame: pd.DataFrame) -> Figure:
    """A whole training run: layers x steps, a panel per recorded quantity.  Black is an exact 0, grey not a number.

    Args:
        frame: `GradientMonitor.frame`.

    Returns:
        The Figure, its message above and its caption below.
    """
    steps = np.unique(frame["step"])
    drawn = steps[np.unique(np.linspace(0, len(steps) - 1, STEPS_DRAWN).round().astype(int))] if len(steps) else steps
    panels = [name for name in TRAINING_PANELS if name in frame.columns]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(7.2, 1.45 * len(panels) + 0.4), layout="constrained")
        axes = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for ax, name in zip(axes, panels, strict=True):
            table = frame[frame["step"].isin(drawn)].pivot(index="layer", columns="step", values=name)
            title, unit, is_log = TRAINING_PANELS[name]
            ax.set_title(title, loc="left")
            if table.size:
                heat_map(ax, table if is_log else log10(table), unit)
        axes[-1].set_xlabel("step (updates before it)")
        figure.supylabel("layer (1 is the first)", fontsize=10)
        return speak(figure, last_step_in_words(frame, panels), f"{count(len(steps), 'recorded step')}"
                     f"{f', {len(drawn)} of them drawn' if len(drawn) < len(steps) else ''}, "
                     f"{count(frame['layer'].nunique(), 'layer')} of one model. Black: exactly 0; grey: not a number. "
                     "Colours leave out half a percent of the values at either end.")


def last_step_in_words(frame: pd.DataFrame, panels: list[str]) -> str:
    """A sentence on the first quantity drawn: the two layers between which it differs most at the last step."""
    last = frame[frame["step"] == frame["step"].max()].set_index("layer") if len(frame) else frame
    logs = [name for name in panels if TRAINING_PANELS[name][2]]
    known = last[logs[0]][np.isfinite(last[logs[0]])] if logs and len(last) else []
    if not len(known):
        return "A training run by layer and step."
    ends = [f"{power_of_ten(known[layer])} (layer {layer})" for layer in (known.idxmin(), known.idxmax())]
    return (f"At step {frame['step'].max()} the norm of the {TRAINING_PANELS[logs[0]][0].partition(',')[0]} lies "
            f"between {ends[0]} and {ends[1]}.")


def heat_map(ax: Axes, table: pd.DataFrame, unit: str) -> None:
    finite = table.to_numpy()[np.isfinite(table)]
    low, high = np.quantile(finite, [0.005, 0.995]) if len(finite) else (0.0, 1.0)
    colors = mpl.colormaps["viridis"].resampled(48).with_extremes(under="black", bad="0.8")  # 48: a smaller file
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
