"""From a gradient-flow frame to one sentence: does the gradient get through, and if not, where and how fast is it lost?

The verdict compares the layers with the last one that the loss sees.  Its one threshold: a squared error signal that
has changed by less than e^6 (a norm by less than 20, 1.3 decades) counts as stable, which is six of the gradient's own
depth scales, 1 / |ln chi_1|.  The threshold is chosen, not derived.  It is inspired by the empirical rule of Schoenholz
et al. 2017, that nets train up to a depth of about 6 xi_c, but is not that rule: xi_c is the depth scale of the
correlation of two inputs.  The two scales agree in the ordered phase alone; in the chaotic phase they part (tanh,
weight variance 4, bias variance 0.05: 1 / ln chi_1 = 3.40, xi_c = 6.98).  And one draw of weights is not the mean:
ln ||error||^2 of a critical ReLU net of width n fluctuates by sqrt(5 depth / n) (Hanin & Nica 2020), which is 2.2 at
depth 50 and width 50; nets near the threshold can fall on either side.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

THRESHOLD = 6.0  # e-folds of the squared norm: six of the gradient's depth scales
SHARE = math.exp(-THRESHOLD / 2)  # of the norm

ADVICE = {
    "vanishing": "Raise the gain (He for ReLU; orthogonal, or variance 1 / fan_in, for tanh), open a carry path "
                 "(residual, highway with a gate bias of about -ln(2 depth)), normalise, or use fewer layers.",
    "exploding": "Lower the gain (He for ReLU, variance 1 / fan_in for linear layers and tanh), scale residual "
                 "branches down, normalise, or use fewer layers.",
    "chaotic": "Lower the gain until the factor is 1 (tanh: weight variance 1 / fan_in without bias), or use fewer "
               "layers; normalisation does not help here.",
    "dead": "Check biases and learning rate (units that are never active pass nothing on), and the code for detach().",
    "stable": "",
}


@dataclass(frozen=True)
class Verdict:
    """One model's verdict; `str()` gives the sentence.

    Attributes:
        kind: "stable"; "vanishing": the error signal loses more than six of its depth scales on the way to the input;
            "exploding": it gains as much, or the activations are not finite; "chaotic": it gains as much while the
            activations do not grow with it, so that nearby inputs are driven apart; "dead": it is exactly 0.
        layer: the layer from which on, towards the input, this holds; None where it is stable.
        factor: by which the norm of the error signal changes per layer on the way back, from the fitted slope.
        factor_error: its standard error, layers taken as independent factors.
        decades: log10 of the norm at the first layer over the norm at the last.
        sentence: all of it in words.
        advice: what usually helps.
    """

    kind: str
    layer: int | None
    factor: float
    factor_error: float
    decades: float
    sentence: str

    @property
    def advice(self) -> str:
        return ADVICE[self.kind]

    def __str__(self) -> str:
        return self.sentence


def verdict_of(frame: pd.DataFrame) -> Verdict:
    """The verdict on a frame of `gradient_flow`."""
    logs = log_squares(frame)
    seen = ~np.isnan(logs)
    activations = frame["activation_mean_square"].to_numpy()
    layers = frame["layer"].to_numpy()
    if not np.isfinite(activations).all():
        first = int(layers[~np.isfinite(activations)][0])
        return without_flow("exploding", first, f"exploding: the activations of layer {first} are not finite.")
    if not seen.any():
        return without_flow("dead", int(layers[-1]), "dead: the loss depends on none of the layers.")
    logs, layers = logs[seen], layers[seen]
    if logs[0] == -math.inf:
        last = int(layers[reach(logs == -math.inf)])
        silent = frame["layer"].to_numpy()[frame["zero_fraction"] == 1]
        cause = f"; at layer {silent[0]} all activations are 0" if len(silent) else ""
        return without_flow("dead", last,
                            f"dead: the error signal is exactly 0 from layer {last} to the input{cause}.")
    change = logs - logs[-1]
    factor, error = math.exp(backward_slope(frame) / 2), math.exp(backward_slope(frame) / 2) * slope_error(frame) / 2
    decades = change[0] / (2 * math.log(10))
    pace = (f"by a factor of {factor:.3g} ± {error:.1g} per layer (1 at criticality), "
            f"{abs(decades):.2g} decades over {len(layers)} layers")
    if abs(change[0]) <= THRESHOLD:
        return Verdict("stable", None, factor, error, decades,
                       f"stable: the error signal reaches the input at {10**decades:.2g} times its last norm, "
                       f"changing {pace}.")
    if change[0] < 0:
        last = int(layers[reach(change < -THRESHOLD)])
        return Verdict("vanishing", last, factor, error, decades,
                       f"vanishing: from layer {last} to the input the error signal is below {SHARE:.0%} of the last "
                       f"layer's; it shrinks {pace}.")
    last = int(layers[reach(change > THRESHOLD)])
    grown = np.log(activations[-1] / activations[0]) if activations[0] > 0 else math.inf
    kind = "chaotic" if grown < change[0] / 2 else "exploding"
    aside = ", while the activations do not grow with it" if kind == "chaotic" else ""
    return Verdict(kind, last, factor, error, decades,
                   f"{kind}: from layer {last} to the input the error signal is above {1 / SHARE:.0f} times the last "
                   f"layer's; it grows {pace}{aside}.")


def without_flow(kind: str, layer: int, sentence: str) -> Verdict:
    return Verdict(kind, layer, math.nan, math.nan, math.nan, sentence)


def reach(condition: np.ndarray) -> int:
    """Index of the last of the layers next to the input for which the condition holds without a break."""
    return len(condition) - 1 if condition.all() else int(np.argmin(condition)) - 1


def log_squares(frame: pd.DataFrame) -> Float[np.ndarray, " layer"]:
    """ln ||error signal||^2, without the steps that geometry makes.

    Averaging over P positions, as global pooling does, divides the squared norm by P whatever the weights are.  So a
    step between two layers that differ in `positions` counts as none.
    """
    logs = 2 * math.log(10) * frame["log10_error_signal_norm"].to_numpy(dtype=float, copy=True)
    if "positions" in frame:
        finite = np.flatnonzero(np.isfinite(logs))
        jump = np.where(np.diff(frame["positions"].to_numpy()[finite]) != 0, np.diff(logs[finite]), 0.0)
        logs[finite[:-1]] += np.cumsum(jump[::-1])[::-1]
    return logs


def backward_slope(frame: pd.DataFrame) -> float:
    """d ln ||error signal||^2 / d layer, towards the input; see `GradientFlow.slope`."""
    log_square = log_squares(frame)
    finite = np.isfinite(log_square)
    if finite.sum() < 2:
        return math.nan
    layer = frame["layer"].to_numpy()[finite] - frame["layer"][finite].mean()
    return -float(layer @ log_square[finite] / (layer @ layer))


def slope_error(frame: pd.DataFrame) -> float:
    """Standard error of `backward_slope`; nan for fewer than three layers.

    A layer multiplies the norm, so neighbouring log norms are far from independent; their differences are.  The slope
    is a weighted sum of these, each of the variance that they show around their mean.  Layers beside the main path
    (inside residual branches, norm layers) add steps to and fro: there the error comes out too large.
    """
    log_square = log_squares(frame)
    finite = np.isfinite(log_square)
    if finite.sum() < 3:
        return math.nan
    layer = frame["layer"].to_numpy()[finite].astype(float)
    centred = layer - layer.mean()
    weights = np.cumsum(centred[::-1])[::-1][1:] / (centred @ centred)  # of the step from each layer to the next
    steps, gaps = np.diff(log_square[finite]), np.diff(layer)
    drift = steps.sum() / gaps.sum()
    variance = ((steps - drift * gaps) ** 2 / gaps).sum() / (len(steps) - 1)  # per layer
    return float(np.sqrt(variance * (weights**2 * gaps).sum()))
