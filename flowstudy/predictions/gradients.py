"""Theory beside measured gradients: norms by layer and their slopes, in the limit of width and exactly at finite width.

Infinite-width predictions hold for batches as for single samples.  Finite-width ones are exact only for one sample, in
plain linear or ReLU nets without biases, with Gaussian or orthogonal weights and an isotropic error signal at the
read-out: every layer then multiplies ||error signal||^2 by an independent factor (`theory.log_jacobian_norm`).  For
other plain nets the mean is known to first order in 1 / width (`mean_steps`); uniform weights obey the Gaussian law to
that order.  In highway and residual nets whose activations have a mean, part of the error passes through one singular
value that grows faster than chi, the mean mode.  It is computed at the nets' own width (`theory.mean_mode`); far from
the loss almost all of the error is in it.

A cross-entropy's error signal is isotropic up to what the softmax knows of the last layer's output, which lies on live
units alone: that touches the first of the depth - 1 steps, by O(1 / width).
"""

import math

import numpy as np
import pandas as pd
from scipy.special import expit

from flowstudy import theory
from flowstudy.arguments import NAME, check_frame, takes
from flowstudy.refusal import RefusalError

from .layers import KIND, cell_weight_var, has_mean_mode, is_gaussian, layer_theory, mode_theory
from .theories import NOT_KNOWN, theory_of

START = ["activation_mean_square", "activation_mean"]  # measured values of layer 1, from which theory starts
NATS = 2 * math.log(10)   # log10 of a norm -> ln of its square
ROUNDING = 1e-6           # a gap that is exactly 0 in theory is below this with float32 weights
SMALL_SHARE = 0.1         # share of the mean mode up to which the units' error signals count as alike


# --- slopes over the layers ------------------------------------------------------------------------------------------


@takes(slopes=check_frame, flow=check_frame)
def with_predicted_slopes(slopes: pd.DataFrame, flow: pd.DataFrame) -> pd.DataFrame:
    """Theory beside the measured `slope` of ln ||error signal||^2 per layer towards the input, a row per net.

    Returns:
        `limit`: at infinite width, from the measured mean square of the nets' first hidden layer.  `predicted`: at the
        nets' own width as far as that is known (see the module), else the limit.  `predicted_std`: of one net's slope,
        exact, nan where not known.  `valid`: whether theory covers such nets: Gaussian or uniform weights, orthogonal
        ones of plain nets alone.  `z`: mean over nets of one kind, less `predicted`, in standard errors of that mean,
        exact ones where known.
    """
    one = one_sample(flow)
    kinds = kinds_of(flow)
    laws = pd.DataFrame([slope_law(cell, one) for _, cell in kinds.iterrows()], index=kinds.index)
    rows = slopes.merge(pd.concat([kinds[KIND], laws], axis=1), how="left", on=KIND)
    groups = rows.groupby(KIND, dropna=False, sort=False)["slope"]
    gap = groups.transform("mean") - rows["predicted"]
    return rows.assign(z=z_of(gap, rows["predicted_std"].fillna(groups.transform("std")), groups.transform("count")))


def slope_law(cell: pd.Series, one: bool) -> dict[str, float]:
    chi, weights = layer_theory(cell)["chi"].to_numpy(), slope_weights(cell["depth"])
    if not len(chi):
        return dict.fromkeys(("limit", "predicted", "predicted_std"), math.nan) | {"valid": False}
    spread = math.sqrt(exact_step(cell).variance * np.square(weights).sum()) if one else math.nan
    predicted = float(weights @ (mean_steps(cell) if one else batch_steps(cell)))
    return {"limit": predicted_slope(chi), "predicted": predicted, "predicted_std": spread,
            "valid": math.isfinite(predicted) and is_gaussian(cell)}


def predicted_slope(chi: np.ndarray) -> float:
    """Least-squares slope of ln ||error signal||^2 towards the input, where layers 2, 3, ... multiply it by chi."""
    return float(slope_weights(len(chi) + 1) @ np.log(chi)) if len(chi) else math.nan


def slope_weights(depth: int) -> np.ndarray:
    """Weights of the steps between `depth` points in their least-squares slope: 6 j (depth - j) / (depth^3 - depth).

    The weights add up to 1; steps in the middle count most.
    """
    j = np.arange(1, depth)
    return 6 * j * (depth - j) / (depth**3 - depth) if depth > 1 else np.zeros(0)


# --- norms by layer --------------------------------------------------------------------------------------------------


@takes(flow=check_frame, quantity=NAME)
def with_predicted_norms(flow: pd.DataFrame, quantity: str = "log10_error_signal_norm") -> pd.DataFrame:
    """Theory beside the norms by layer of `quantity`, a row per net and layer: from the net's own norm at the last.

    Error signal: layer l multiplies its square by chi_l on the way back; of one sample, what finite width does to the
    mean logarithm is counted as far as it is known (see the module).
    Weight gradient, from layer 2 on: for one sample ||dL/dW_l|| = ||dL/dh_l|| ||x_(l-1)||, h_l = W_l x_(l-1), both
    factors known.  ReLU and linear nets: the same in all layers, at any width, since forwards and backwards a layer
    multiplies by factors of one law.  For a batch it is the root of sum_st (dL/dh_s . dL/dh_t) (x_s . x_t), in which
    the samples' labels decide the signs: pairs of one class add up, pairs of two cancel all the more the more alike
    depth makes them, and theory that knows no labels has nothing to say.

    Returns:
        `predicted`, nan where not known, and `law`, what it holds for.  `valid`: false where theory has a number but
        does not cover the net: weight gradients of layers that the error signal reaches by the mean mode (more than a
        tenth of its square), which is not the same in all units; orthogonal weights of highway and residual nets.
        `predicted_std`: of the norm from net to net, exact but for what the loss itself varies, nan where not known.
        `z`: mean over nets of one kind and layer, less `predicted`, in standard errors of that mean.
    """
    one = one_sample(flow)
    kinds = kinds_of(flow)
    laws = pd.concat([norm_law(cell, quantity, one).assign(**cell[KIND]) for _, cell in kinds.iterrows()])
    rows = flow.merge(laws.astype(flow[KIND].dtypes), how="left", on=[*KIND, "layer"])
    last = rows[rows["layer"] == rows["depth"]].set_index("cell")[quantity]
    rows["predicted"] = rows["cell"].map(last) + rows.pop("drift")
    rows["valid"] = rows["valid"].fillna(False).astype(bool) & rows["predicted"].notna()
    rows["gap"] = (rows[quantity] - rows["predicted"]).replace([np.inf, -np.inf], np.nan)
    groups = rows.groupby([*KIND, "layer"], dropna=False, sort=False)["gap"]
    spread = rows.pop("gap_std").fillna(groups.transform("std"))
    return rows.assign(z=z_of(groups.transform("mean"), spread, groups.transform("count"))).drop(columns="gap")


def norm_law(cell: pd.Series, quantity: str, one: bool) -> pd.DataFrame:
    """By `layer`, in log10 of the norm: `drift` from the last layer, `gap_std` of a net's own drift and
    `predicted_std` of the norm itself; nan where not known."""
    layers = np.arange(1, cell["depth"] + 1)
    step = exact_step(cell) if one else NOT_KNOWN
    if quantity == "log10_error_signal_norm":
        steps = cell["depth"] - layers
        drift, valid = backward(mean_steps(cell) if one else batch_steps(cell)), np.full(len(layers), True)
        variance = steps * step.variance
        spread = variance + theory.log_jacobian_norm(cell["width"], 1, "linear").variance  # a Gaussian read-out's part
    elif quantity == "log10_weight_gradient_norm":
        drift = weight_gradient_drift(cell) if one else np.full(len(layers), np.nan)
        valid = mode_share(cell) < SMALL_SHARE
        variance = np.full(len(layers), np.nan)
        spread = np.full(len(layers), len(layers) * step.variance)  # x_(l-1) and h_l share no weights
    else:
        raise RefusalError("with_predicted_norms: `quantity` must be log10_error_signal_norm or "
                           f"log10_weight_gradient_norm, got {quantity!r}.")
    if cell["init"] == "orthogonal":  # of first layer and read-out, which are not square
        spread = np.full(len(layers), np.nan)
    law = law_in_words(cell, one, quantity)
    return pd.DataFrame({"layer": layers, "law": law, "drift": drift / NATS, "gap_std": np.sqrt(variance) / NATS,
                         "predicted_std": np.sqrt(spread) / NATS, "valid": valid & is_gaussian(cell)})


def backward(log_gains: np.ndarray) -> np.ndarray:
    """ln ||error signal||^2 at layers 1..depth less that at the last, from the gains of layers 2..depth."""
    return np.append(np.cumsum(log_gains[::-1])[::-1], 0.0)


def weight_gradient_drift(cell: pd.Series) -> np.ndarray:
    """ln ||dL/dW_l||^2 less that at the last layer, infinite width; nan at layer 1, whose inputs are the data.

    ||dL/dW_l||^2 = width q_(l-1) (chi_l - carried_l) ||dL/d(layer's output)||^2 / weight_var, where `carried` is the
    part of chi that does not pass through the weights: E (1-T)^2 of a highway layer, 1 of a residual one.
    """
    layers = layer_theory(cell)
    q = np.append(cell["activation_mean_square"], layers["q"].to_numpy()[:-1])  # of the inputs of layers 2..depth
    renewed = layers["chi"].to_numpy() - carried(cell, q)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.append(np.nan, backward(np.log(layers["chi"].to_numpy()))[1:] + np.log(q) + np.log(renewed))
    return logs - logs[-1]


def carried(cell: pd.Series, q: np.ndarray) -> np.ndarray | float:
    return theory_of(cell).carried(cell, cell_weight_var(cell), q)


# --- shared ----------------------------------------------------------------------------------------------------------


def law_in_words(cell: pd.Series, one: bool, quantity: str = "log10_error_signal_norm") -> str:
    if one and math.isfinite(exact_step(cell).mean):
        return "first order in 1 / width" if cell["init"].endswith("uniform") else "exact"
    if quantity == "log10_error_signal_norm" and has_mean_mode(cell):
        return "infinite width and the mean mode"
    first_order = one and theory_of(cell).first_order and quantity == "log10_error_signal_norm"
    return "first order in 1 / width" if first_order else "infinite width"


def mean_steps(cell: pd.Series) -> np.ndarray:
    """Mean over nets of ln ||error signal||^2 at layer l - 1 less that at l, for l = 2..depth and one sample.

    Exact where `exact_step` is (with uniform weights, whose kurtosis comes in at the next order, to O(1 / width^2)).
    Else ln chi, of plain nets less half the relative variance of the layer's factor: with mu_k = E phi'^2k,
    (3 mu_2 / mu_1^2 - 1) / width for Gaussian weights, 3 (mu_2 / mu_1^2 - 1) / width for orthogonal ones.
    E ln X = ln E X - Var X / (2 (E X)^2) is then right to O(1 / width^2).  Of nets with a mean mode, that at their own
    width is added to the product of the chi.
    """
    if has_mean_mode(cell):
        back = mode_theory(cell)
        return steps_of(theory.mean_log_square(back["log_bulk_back"].to_numpy(), back["log_mode_back"].to_numpy()))
    layers, step = layer_theory(cell), exact_step(cell)
    if math.isfinite(step.mean):
        return np.full(len(layers), step.mean)
    steps = np.log(layers["chi"].to_numpy())
    if not theory_of(cell).first_order or not np.isfinite(steps).all() or not len(steps):
        return steps
    spread = theory.spectrum_variance(cell["activation"], 1, "orthogonal", layers["length"].to_numpy())
    return steps - (3 * spread + 2 * (cell["init"] != "orthogonal")) / (2 * cell["width"])


def batch_steps(cell: pd.Series) -> np.ndarray:
    """As `mean_steps`, for the norm over a batch of many samples, whose fluctuations average out."""
    if not has_mean_mode(cell):
        return np.log(layer_theory(cell)["chi"].to_numpy())
    back = mode_theory(cell)
    return steps_of(np.logaddexp(back["log_bulk_back"].to_numpy(), back["log_mode_back"].to_numpy()))


def steps_of(logs: np.ndarray) -> np.ndarray:
    """The differences between neighbouring layers, from ln ||error signal||^2 at layers 1..depth - 1, relative to the
    last layer's."""
    return -np.diff(np.append(logs, 0.0))


def mode_share(cell: pd.Series) -> np.ndarray:
    """The mean mode's share of ||error signal||^2 at layers 1..depth."""
    if not has_mean_mode(cell):
        return np.zeros(cell["depth"])
    back = mode_theory(cell)
    return np.append(expit((back["log_mode_back"] - back["log_bulk_back"]).to_numpy()), 0.0)


def exact_step(cell: pd.Series) -> theory.Moments:
    """Exact mean and variance of the change of ln ||error signal||^2 from one layer's output to the one before."""
    return theory_of(cell).exact_step(cell, cell_weight_var(cell))


def one_sample(flow: pd.DataFrame) -> bool:
    """Whether the norms are of one sample only, as seen from the correlation of two inputs, which is then nan."""
    return bool(flow["activation_correlation"].isna().all())


def kinds_of(flow: pd.DataFrame) -> pd.DataFrame:
    """A row per kind of net, with the medians over nets at which theory starts."""
    first = flow[flow["layer"] == 1]
    return first.groupby(KIND, dropna=False, sort=False)[START].median().reset_index()


def z_of(gap: pd.Series, spread: pd.Series, count: pd.Series) -> pd.Series:
    return gap / np.hypot(spread / np.sqrt(count), ROUNDING)
