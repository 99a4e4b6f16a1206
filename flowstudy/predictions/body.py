"""Theory beside `body_moments`: every measured moment with its standard error, the prediction, and the distance."""

import math

import numpy as np
import pandas as pd

from flowstudy import theory

from .layers import weight_var

KIND = ["net", "init", "gain", "gate_bias", "activation", "depth", "width", "bias_var", "q0", "m0", "c0"]
WITHOUT = "_without_largest"
SPECTRAL = ["mean_squared", "P"]  # measured with and without the largest singular value
QUANTITIES = ["q", "m", "c", "chi", "gradient_correlation", *SPECTRAL, *(name + WITHOUT for name in SPECTRAL)]
ODD = ("linear", "tanh", "hard_tanh", "erf")  # activations of mean 0


def with_predicted_moments(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per kind of net, layer and quantity of `body_moments`, from a frame of many nets.

    `measured`: mean over nets; `standard_error` of that mean, nan where there is one net.  `predicted`: for infinite
    width, nan where theory has nothing to say: of the moments with and without the largest singular value one is
    predicted, the latter for nets with a mean mode (see `theory.highway`).  `z`: measured less predicted, in standard
    errors; at finite width there is a bias of the order depth / width, which z counts too.
    """
    groups = rows.groupby([*KIND, "layer"], dropna=False, sort=False)[QUANTITIES]
    found = groups.mean().melt(ignore_index=False, var_name="quantity", value_name="measured").reset_index()
    found["standard_error"] = groups.sem().melt(ignore_index=False)["value"].to_numpy()
    found = found.merge(predictions_of(rows), how="left", on=[*KIND, "layer", "quantity"])
    return found.assign(z=(found["measured"] - found["predicted"]) / found["standard_error"])


def has_mean_mode(cell: pd.Series) -> bool:
    """Whether one singular value grows beyond all others, and theory speaks about the others (`theory.highway`)."""
    return cell["net"] != "plain" and cell["activation"] not in ODD


def predictions_of(rows: pd.DataFrame) -> pd.DataFrame:
    """`predicted` by quantity and layer, every layer, of each kind of net in a frame of `body_moments`."""
    kinds = rows.drop_duplicates(KIND)
    return pd.concat([predicted_moments(cell) for _, cell in kinds.iterrows()], ignore_index=True)


def predicted_moments(cell: pd.Series) -> pd.DataFrame:
    """`layer`, `quantity`, `predicted` of one kind of net, beside the columns that tell the kind."""
    moments = moments_of(cell)
    if has_mean_mode(cell):
        moments = moments.rename(columns={name: name + WITHOUT for name in SPECTRAL})
    known = moments[["layer", *moments.columns.intersection(QUANTITIES)]]
    tidy = known.melt("layer", var_name="quantity", value_name="predicted")
    return tidy.assign(**{name: cell[name] for name in KIND})


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
