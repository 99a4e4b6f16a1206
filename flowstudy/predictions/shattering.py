"""Theory beside `gradient_correlation`: cosine of two inputs' gradients by the angle between the inputs."""

import math

import numpy as np
import pandas as pd

from flowstudy import theory
from flowstudy.arguments import check_frame, takes

from .layers import KIND, cell_weight_var
from .theories import theory_of

FAN_IN = ("he_normal", "lecun_normal")  # Gaussian, and of one weight_var in the first layer too, which is not square
ROUNDING = 1e-12  # what is left of a gap that is exactly 0


@takes(rows=check_frame)
def with_predicted_correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Theory beside the correlation of two inputs' gradients, from a frame of "gradient_correlation" of many nets.

    At finite width there is a bias of the order depth / width, which z counts as a deviation.

    Returns:
        A row per kind of net, `readout` and `lag`.  `measured`: mean over nets of `correlation`; `standard_error` of
        that mean, nan for a single net.  `predicted`: at infinite width, nan where theory has no answer; `gap` and `z`:
        measured less predicted, z in standard errors.  `hidden`, `predicted_hidden`: the same for the last hidden
        outputs.  `independent`: the gradients' correlation if the masks of two inputs were independent
        (`theory.shattered_correlation`), nan where that does not apply.
    """
    groups = rows.groupby([*KIND, "readout", "lag", "angle"], dropna=False, sort=False)
    found = groups["correlation"].agg(measured="mean", standard_error="sem").reset_index()
    found["hidden"] = groups["hidden_correlation"].mean().to_numpy()
    predicted = pd.concat([predicted_by_angle(nets) for _, nets in rows.groupby(KIND, dropna=False, sort=False)])
    found = found.merge(predicted.astype(rows[KIND].dtypes), how="left", on=[*KIND, "lag"])
    gap = found["measured"] - found["predicted"]
    return found.assign(gap=gap, z=gap / np.hypot(found["standard_error"], ROUNDING))


def predicted_by_angle(nets: pd.DataFrame) -> pd.DataFrame:
    """`lag`, `predicted`, `predicted_hidden`, `independent` for nets of one kind, beside the columns that tell it."""
    cell = nets.iloc[0]
    angles = nets.drop_duplicates("lag")
    both = np.array([correlations(cell, angle) for angle in angles["angle"]])
    independent = theory_of(cell).independent_masks(cell, cell_weight_var(cell))
    return pd.DataFrame({"lag": angles["lag"].to_numpy(), "predicted": both[:, 0], "predicted_hidden": both[:, 1],
                         "independent": independent} | {name: cell[name] for name in KIND})


def correlations(cell: pd.Series, angle: float) -> tuple[float, float]:
    """Predicted cosines of two inputs' gradients and of their last hidden outputs, for inputs of mean square 1."""
    if cell["init"] not in FAN_IN:
        return math.nan, math.nan
    variance = cell_weight_var(cell)
    # Gates that are wide open make the plain layer, with the mean of its outputs, where the body sets out.
    first = theory.highway(cell["activation"], 1, math.inf, variance, 0.0, c0=math.cos(angle),
                           bias_var=cell["bias_var"]).iloc[0]
    if cell["depth"] == 1:
        return first["gradient_correlation"], first["c"]
    body = theory_of(cell).correlations(cell, int(cell["depth"]) - 1, variance, first["q"], first["m"], first["c"],
                                        cell["bias_var"])
    last = body.iloc[-1]
    return first["gradient_correlation"] * last["gradient_correlation"], last["c"]
