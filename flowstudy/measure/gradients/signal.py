"""The error signal along the main path as one series, and its slope.

Two effects that do not depend on the weights are removed.  Averaging over P positions (global pooling) divides the
squared norm of the error signal by P.  And in a net with normalisation layers the size of a value is arbitrary: if a
value in front of such a layer doubles, its error signal halves and the net computes the same.  The product
||dL/dh|| rms(h), the gradient with respect to ln h, stays the same; in such nets it is used in place of ||dL/dh||.
"""

import math

import numpy as np
import pandas as pd
from jaxtyping import Float

from flowstudy.measure.models.layers import is_norm


def path_frame(columns: dict[str, list], types: list[str], normalises: bool) -> pd.DataFrame:
    """`GradientFlow.path`.

    Args:
        columns: of every point: `layer`, `log10_error_signal_norm`, `activation_mean_square`, `averaged_positions`, and
            `own`, it is what that layer puts out.
        types: of all layers.
        normalises: the net does.  A value that nothing but a normalisation layer reads is then left out: what that
            takes off, a bias in front of batch norm, is part of its size.
    """
    path = pd.DataFrame(columns)
    norm = path["own"].to_numpy(bool) & np.array([is_norm(types[layer - 1]) for layer in path["layer"]], dtype=bool)
    read_by_norm = np.append(norm[1:], False)[:len(path)]
    signal = path["log10_error_signal_norm"] + np.log10(path["averaged_positions"]) / 2
    if normalises:
        size = path["activation_mean_square"].where(path["activation_mean_square"] > 0)
        signal = signal + np.log10(size) / 2
        signal[path["log10_error_signal_norm"] == -math.inf] = -math.inf
    path = path.drop(columns="own").assign(log10_signal=signal)
    return path[~read_by_norm].reset_index(drop=True) if normalises else path


def log_squares(frame: pd.DataFrame) -> Float[np.ndarray, " layer"]:
    """ln of the squared signal: from `log10_signal` of a path, else from the error signal norms of a frame by layer."""
    column = "log10_signal" if "log10_signal" in frame else "log10_error_signal_norm"
    return 2 * math.log(10) * frame[column].to_numpy(dtype=float, copy=True)


def change_of(frame: pd.DataFrame) -> float:
    """ln of the squared signal at the first place that has one, less that at the last; 0 where there are not two."""
    known = log_squares(frame)
    known = known[~np.isnan(known)]
    return known[0] - known[-1] if len(known) >= 2 and np.isfinite(known[-1]) else 0.0


def places_of(frame: pd.DataFrame) -> np.ndarray:
    """The axis along which changes are counted: time steps of a path over time, else layers."""
    return frame["step" if "step" in frame else "layer"].to_numpy(float)


def backward_slope(frame: pd.DataFrame) -> float:
    """d ln signal^2 / d layer, towards the input; see `GradientFlow.slope`."""
    log_square = log_squares(frame)
    finite = np.isfinite(log_square)
    if finite.sum() < 2:
        return math.nan
    layer = places_of(frame)[finite] - places_of(frame)[finite].mean()
    return -float(layer @ log_square[finite] / (layer @ layer))


def slope_error(frame: pd.DataFrame) -> float:
    """Standard error of `backward_slope`; nan for fewer than three layers.

    A layer multiplies the norm, so neighbouring log norms are far from independent; their differences are.  The slope
    is a weighted sum of these, each of the variance that they show around their mean.
    """
    log_square = log_squares(frame)
    finite = np.isfinite(log_square)
    if finite.sum() < 3:
        return math.nan
    layer = places_of(frame)[finite]
    centred = layer - layer.mean()
    weights = np.cumsum(centred[::-1])[::-1][1:] / (centred @ centred)  # of the step from each layer to the next
    steps, gaps = np.diff(log_square[finite]), np.diff(layer)
    drift = steps.sum() / gaps.sum()
    variance = ((steps - drift * gaps) ** 2 / gaps).sum() / (len(steps) - 1)  # per layer
    return float(np.sqrt(variance * (weights**2 * gaps).sum()))


def fading(path: pd.DataFrame, threshold: float) -> float:
    """Factor per step by which the last state's signal fades beyond the threshold; nan where it does not."""
    carried = 2 * math.log(10) * path["log10_carried_norm"].to_numpy(float)
    change = carried[0] - carried[-1]
    return math.exp(change / (2 * (len(path) - 1))) if change < -threshold else math.nan
