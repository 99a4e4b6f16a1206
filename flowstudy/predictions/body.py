"""Theory beside `body_moments`: every measured moment with its standard error, the prediction, and the distance."""

import math

import pandas as pd

from flowstudy.arguments import check_frame, takes

from . import layers as by_layer
from .layers import cell_weight_var, has_mean_mode, is_gaussian
from .theories import theory_of

KIND = [*by_layer.KIND, "q0", "m0", "c0"]
WITHOUT = "_without_largest"
SPECTRAL = ["mean_squared", "P"]  # measured with and without the largest singular value
QUANTITIES = ["q", "m", "c", "chi", "gradient_correlation", *SPECTRAL, *(name + WITHOUT for name in SPECTRAL)]
SMALL_SHARE = 0.1  # the mean mode's share of the mean square up to which it does not show in two gradients' cosine


@takes(rows=check_frame)
def with_predicted_moments(rows: pd.DataFrame) -> pd.DataFrame:
    """Theory beside the quantities of `body_moments`, from a frame of many nets.

    At finite width there is a bias of the order depth / width, which z counts as a deviation.

    Returns:
        A row per kind of net, layer and quantity.  `measured`: mean over nets; `standard_error` of that mean, nan for a
        single net.  `predicted`: at infinite width, nan where theory has no answer; of the moments with and without the
        largest singular value only one is predicted, the latter for nets with a mean mode (see `theory.highway`).
        `z`: measured less predicted, in standard errors.  `valid`: false where theory has a number but does not cover
        the nets: the cosine of two gradients where the mean mode, which both share, is more than a tenth of the
        Jacobian's mean square.
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
    variance = cell_weight_var(cell)
    if not has_mean_mode(cell) or cell["depth"] < 2 or not math.isfinite(variance):
        return []
    rows = theory_of(cell).mean_mode(cell, int(cell["depth"] - 1), variance, cell["q0"], cell["m0"], cell["bias_var"])
    odds = rows["log_mode"] - math.log(cell["width"]) - rows["log_bulk"]
    return rows.loc[odds > math.log(SMALL_SHARE / (1 - SMALL_SHARE)), "layer"].tolist()


def moments_of(cell: pd.Series) -> pd.DataFrame:
    """theory's frame of the body, `layer` 1..depth - 1; nothing else where net or initialiser have no theory here."""
    variance, layers = cell_weight_var(cell), int(cell["depth"] - 1)
    if cell["init"] == "orthogonal" or not math.isfinite(variance):
        return pd.DataFrame({"layer": range(1, layers + 1)})
    return theory_of(cell).moments(cell, layers, variance, cell["q0"], cell["m0"], cell["c0"], cell["bias_var"])
