"""Theory beside `body_moments`: every measured moment with its standard error, the prediction, and the distance."""

import math

import numpy as np
import pandas as pd

from flowstudy import theory

from .layers import has_mean_mode, is_gaussian, weight_var

KIND = ["net", "init", "gain", "gate_bias", "activation", "depth", "width", "bias_var", "q0", "m0", "c0"]
WITHOUT = "_without_largest"
SPECTRAL = ["mean_squared", "P"]  # measured with and without the largest singular value
QUANTITIES = ["q", "m", "c", "chi", "gradient_correlation", *SPECTRAL, *(name + WITHOUT for name in SPECTRAL)]
SMALL_SHARE = 0.1  # of the mean square, up to which the mean mode does not show in two gradients' cosine


def with_predicted_moments(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per kind of net, layer and quantity of `body_moments`, from a frame of many nets.

    `measured`: mean over nets; `standard_error` of that mean, nan where there is one net.  `predicted`: for infinite
    width, nan where theory has nothing to say: of the moments with and without the largest singular value one is
    predicted, the latter for nets with a mean mode (see `theory.highway`).  `z`: measured less predicted, in standard
    errors; at finite width there is a bias of the order depth / width, which z counts too.  `valid`: false where theory
    has a number but does not cover the nets: the cosine of two gradients where the mean mode, which both share, is more
    than a tenth of the Jacobian's mean square.
    """
    groups = rows.groupby([*KIND, "layer"], dropna=False, sort=False)[QUANTITIES]
    found = groups.mean().melt(ignore_index=False, var_name="quantity", value_name="measured").reset_index()
    found["standard_error"] = groups.sem().melt(ignore_index=False)["value"].to_numpy()
    found = found.merge(predictions_of(rows), how="left", on=[*KIND, "layer", "quantity"])
    found["valid"] = found["valid"].fillna(False).astype(bool)
    return found.assign(z=(found["measured"] - found["predicted"]) / found["standard_error"])


def predictions_of(rows: pd.DataFrame) -> pd.DataFrame:
    """`predicted` and `valid` by quantity and layer, every layer, of each kind of net in a frame of `body_moments`."""
    kinds = rows.drop_duplicates(KIND)
    return pd.concat([predicted_moments(cell) for _, cell in kinds.iterrows()], ignore_index=True)


def predicted_moments(cell: pd.Series) -> pd.DataFrame:
    """`layer`, `quantity`, `predicted`, `valid` of one kind of net, beside the columns that tell the kind."""
    moments = moments_of(cell)
    if has_mean_mode(cell):
        moments = moments.rename(columns={name: name + WITHOUT for name in SPECTRAL})
    known = moments[["layer", *moments.columns.intersection(QUANTITIES)]]
    tidy = known.melt("layer", var_name="quantity", value_name="predicted")
    drowned = tidy["layer"].isin(mode_layers(cell)) & (tidy["quantity"] == "gradient_correlation")
    valid = tidy["predicted"].notna() & is_gaussian(cell) & ~drowned
    return tidy.assign(valid=valid, **{name: cell[name] for name in KIND})


def mode_layers(cell: pd.Series) -> list[int]:
    """The layers from whose output back to the input the mean mode is more than SMALL_SHARE of the mean square."""
    variance = weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])
    if not has_mean_mode(cell) or cell["depth"] < 2 or not math.isfinite(variance):
        return []
    gate_bias = cell["gate_bias"] if cell["net"] == "highway" else 0.0
    rows = theory.mean_mode(cell["net"], cell["activation"], int(cell["depth"] - 1), gate_bias, variance, variance,
                            q0=cell["q0"], m0=cell["m0"], bias_var=cell["bias_var"])
    odds = rows["log_mode"] - math.log(cell["width"]) - rows["log_bulk"]
    return rows.loc[odds > math.log(SMALL_SHARE / (1 - SMALL_SHARE)), "layer"].tolist()


def moments_of(cell: pd.Series) -> pd.DataFrame:
    """theory's frame of the body, `layer` 1..depth - 1; nothing else where net or initialiser have no theory here."""
    variance = weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])
    layers, activation = int(cell["depth"] - 1), cell["activation"]
    start = {name: cell[name] for name in ("q0", "c0", "bias_var")}
    if cell["init"] == "orthogonal" or not math.isfinite(variance):
        return pd.DataFrame({"layer": range(1, layers + 1)})
    if cell["net"] == "highway":
        return theory.highway(activation, layers, cell["gate_bias"], variance, variance, m0=cell["m0"], **start)
    if cell["net"] == "residual":
        return theory.residual_net(activation, layers, variance, m0=cell["m0"], **start)
    frame = theory.plain(activation, layers, variance, **start)
    spread = [theory.spectrum_variance(activation, 1, q=length) for length in frame["length"]]
    return frame.assign(P=1 + np.cumsum(spread))  # the layers are free of each other: their relative variances add up
