"""Theory beside `gradient_correlation`: cosine of two inputs' gradients by the angle between the inputs."""

import math

import numpy as np
import pandas as pd

from flowstudy import theory

from .layers import weight_var

KIND = ["net", "init", "gain", "gate_bias", "activation", "depth", "width", "bias_var"]  # all but the seed
FAN_IN = ("he_normal", "lecun_normal")  # Gaussian, and of one weight_var in the first layer too, which is not square
ROUNDING = 1e-12  # what is left of a gap that is exactly 0


def with_predicted_correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per kind of net, `readout` and `lag` of `gradient_correlation`, from a frame of many nets.

    `measured`: mean over nets of `correlation`; `standard_error` of that mean, nan where there is one net.
    `predicted`: for infinite width, nan where theory has nothing to say; `gap` and `z`: measured less predicted, z in
    standard errors.  `hidden`, `predicted_hidden`: the same of the last hidden outputs.  `independent`: what gradients
    would have if the masks of two inputs were independent (`theory.shattered_correlation`); nan where that has nothing
    to say.  At finite width there is a bias of the order depth / width, which z counts as a deviation.
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
    return pd.DataFrame({"lag": angles["lag"].to_numpy(), "predicted": both[:, 0], "predicted_hidden": both[:, 1],
                         "independent": independent_masks(cell)} | {name: cell[name] for name in KIND})


def correlations(cell: pd.Series, angle: float) -> tuple[float, float]:
    """Of gradients and of the last hidden outputs: one plain layer, then the body; inputs of mean square 1."""
    if cell["init"] not in FAN_IN:
        return math.nan, math.nan
    variance = weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])
    # Gates that are wide open make the plain layer, with the mean of its outputs, where the body sets out.
    first = theory.highway(cell["activation"], 1, math.inf, variance, 0.0, c0=math.cos(angle),
                           bias_var=cell["bias_var"]).iloc[0]
    if cell["depth"] == 1:
        return first["gradient_correlation"], first["c"]
    start = {"q0": first["q"], "m0": first["m"], "c0": first["c"], "bias_var": cell["bias_var"]}
    last = body(cell, int(cell["depth"]) - 1, variance, start).iloc[-1]
    return first["gradient_correlation"] * last["gradient_correlation"], last["c"]


def body(cell: pd.Series, layers: int, variance: float, start: dict[str, float]) -> pd.DataFrame:
    if cell["net"] == "highway":
        return theory.highway(cell["activation"], layers, cell["gate_bias"], variance, variance, **start)
    if cell["net"] == "residual":
        return theory.residual_net(cell["activation"], layers, variance, **start)
    return theory.highway(cell["activation"], layers, math.inf, variance, 0.0, **start)


def independent_masks(cell: pd.Series) -> float:
    """1/2 for a plain ReLU layer and, with He's weights, 3/4 for a residual one."""
    variance = weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])
    if cell["activation"] != "relu" or cell["net"] not in ("plain", "residual") or not math.isclose(variance, 2):
        return math.nan
    if cell["depth"] == 1:
        return 0.5
    return 0.5 * float(theory.shattered_correlation(cell["net"], cell["depth"] - 1))
