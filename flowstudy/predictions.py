"""Theory beside measured frames: what an infinitely wide net of the same start would show, and how far off that is."""

import math

import numpy as np
import pandas as pd

from flowstudy import theory

GAINS = {"glorot_normal": 1.0, "glorot_uniform": 1.0, "he_normal": 2**0.5, "he_uniform": 2**0.5, "lecun_normal": 1.0,
         "orthogonal": 1.0}  # of square matrices, where the cell gives none: see flowstudy.nets.initialize


def weight_var(init: str, gain: float | None, activation: str, width: int | np.integer) -> float:
    """Variance of a body weight times width, as the scheme draws it; of orthogonal weights, the squared scale."""
    if gain is not None and not math.isnan(gain):
        return gain**2
    if init in GAINS:
        return GAINS[init] ** 2
    if init in ("random_walk", "random_walk_exact"):
        return float(theory.random_walk_gain(activation, width, exact=init == "random_walk_exact") ** 2)
    return float("nan")


def layer_gains(cell: pd.Series) -> np.ndarray:
    """chi of layers 2..depth, from the measured mean square and mean of layer 1's output; nan where not known."""
    variance = weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])
    q, m, layers = cell["activation_mean_square"], cell["activation_mean"], cell["depth"] - 1
    if layers < 1 or not math.isfinite(variance) or not q > 0:
        return np.full(max(layers, 0), np.nan)
    if cell["net"] == "highway":
        return theory.highway(cell["activation"], layers, cell["gate_bias"], variance, variance, q0=q, m0=m,
                              c0=1.0)["chi"].to_numpy()
    return theory.plain(cell["activation"], layers, variance, q0=q)["chi"].to_numpy()


def predicted_slope(chi: np.ndarray) -> float:
    """Least-squares slope of ln ||error signal||^2 towards the input, where layer l multiplies it by chi_l."""
    logs = np.concatenate([[0.0], -np.cumsum(np.log(chi))])  # at layers 1, 2, ..., up to a constant
    return -float(np.polyfit(np.arange(len(logs)), logs, 1)[0]) if len(logs) > 1 else math.nan


def predicted_error_signal(flow: pd.DataFrame) -> pd.Series:
    """log10 norm of the error signal by `layer` of nets of one kind and depth, from its measured median at the last.

    The prediction is for infinite width; layer l multiplies the squared norm by chi_l on the way back.
    """
    first, last = (flow[flow["layer"] == layer] for layer in (1, flow["layer"].max()))
    cell = first.iloc[0].copy()
    for name in ("activation_mean_square", "activation_mean"):
        cell[name] = first[name].median()
    back = np.cumsum(np.log10(layer_gains(cell))[::-1])[::-1] / 2  # from the last layer to layers 1, 2, ...
    norms = last["log10_error_signal_norm"].median() + np.append(back, 0.0)
    return pd.Series(norms, index=pd.RangeIndex(1, len(norms) + 1, name="layer"))


def with_predicted_slopes(slopes: pd.DataFrame, flow: pd.DataFrame) -> pd.DataFrame:
    """`predicted` and `z` beside the measured `slope`, a row per net.

    The prediction is for infinite width, from the measured mean square of the nets' first hidden layer; z is the mean
    over nets of the same kind, less the prediction, in standard errors of that mean.  At finite width z is not small:
    a ReLU layer of width n loses about 5 / (2 n) more (`theory.log_jacobian_norm` has it exactly for one input).
    """
    kind = ["net", "init", "gain", "gate_bias", "activation", "depth", "width"]
    start = ["activation_mean_square", "activation_mean"]
    nets = flow[flow["layer"] == 1].groupby(kind, dropna=False, sort=False)[start].median().reset_index()
    nets["predicted"] = [predicted_slope(layer_gains(cell)) for _, cell in nets.iterrows()]
    rows = slopes.merge(nets[[*kind, "predicted"]], how="left", on=kind)
    groups = rows.groupby(kind, dropna=False, sort=False)["slope"]
    error = groups.transform("std") / np.sqrt(groups.transform("count"))
    return rows.assign(z=(groups.transform("mean") - rows["predicted"]) / error)
