"""Infinite-width theory for the nets of a frame, layer by layer, from the measured moments of their first layer."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from flowstudy import theory
from flowstudy.arguments import NAME, ROW, a_whole, instance_of, optional, takes

from .theories import BodyTheory, theory_of

# The columns that tell a kind of net: all of a cell's but the seed and how it learns.
KIND = ["net", "init", "gain", "gate_bias", "bias_var", "activation", "depth", "width"]
# Of square matrices, where the cell gives none: see flowstudy.nets.initialize.
GAINS = {"glorot_normal": 1.0, "glorot_uniform": 1.0, "he_normal": 2**0.5, "he_uniform": 2**0.5, "lecun_normal": 1.0,
         "lecun_uniform": 1.0, "orthogonal": 1.0}


ODD = ("linear", "tanh", "hard_tanh", "erf")  # activations of mean 0


def has_mean_mode(cell: pd.Series) -> bool:
    """Whether one singular value grows beyond all others (`theory.mean_mode`)."""
    return theory_of(cell).carries and cell["activation"] not in ODD


def is_gaussian(cell: pd.Series) -> bool:
    """Whether theory covers the weights: for highway and residual nets it does not cover orthogonal ones."""
    return theory_of(cell).covers_orthogonal or cell["init"] != "orthogonal"


@takes(init=NAME, gain=optional(instance_of((int, float, np.number), "a number")), activation=NAME, width=a_whole(1))
def weight_var(init: str, gain: float | None, activation: str, width: int | np.integer) -> float:
    """Variance of a body weight times width, as the scheme draws it.

    Returns:
        width Var(w), dimensionless; for orthogonal weights the square of their scale.
    """
    if gain is not None and not math.isnan(gain):
        return gain**2
    if init in GAINS:
        return GAINS[init] ** 2
    if init in ("random_walk", "random_walk_exact"):
        return float(theory.random_walk_gain(activation, width, exact=init == "random_walk_exact") ** 2)
    return float("nan")


def cell_weight_var(cell: pd.Series) -> float:
    return weight_var(cell["init"], cell["gain"], cell["activation"], cell["width"])


@takes(cell=ROW)
def layer_theory(cell: pd.Series) -> pd.DataFrame:
    """Layers 2..depth at infinite width, from the measured mean square and mean of layer 1's output.

    Returns:
        A row per layer: `q` and `chi` as in `theory.plain`, nan where theory has no answer.
    """
    return worked_out(wide_layers, cell)


def wide_layers(cell: pd.Series) -> pd.DataFrame:
    variance = cell_weight_var(cell)
    q, m, layers = cell["activation_mean_square"], cell["activation_mean"], int(cell["depth"]) - 1
    if layers < 1 or not math.isfinite(variance) or not q > 0:
        return pd.DataFrame(np.nan, index=range(max(layers, 0)), columns=["q", "chi"])
    return theory_of(cell).layers(cell, layers, variance, q, m, cell.get("bias_var", 0.0))


def mode_theory(cell: pd.Series) -> pd.DataFrame:
    """`theory.mean_mode` of layers 2..depth, `mode` divided by the width: what it adds to the mean square."""
    return worked_out(wide_mode, cell)


def wide_mode(cell: pd.Series) -> pd.DataFrame:
    variance = cell_weight_var(cell)
    q, m, layers = cell["activation_mean_square"], cell["activation_mean"], int(cell["depth"]) - 1
    columns = ["log_bulk", "log_mode", "log_bulk_back", "log_mode_back"]
    if layers < 1 or not math.isfinite(variance) or not q > 0:
        return pd.DataFrame(np.nan, index=range(max(layers, 0)), columns=[*columns, "P"])
    rows = theory_of(cell).mean_mode(cell, layers, variance, q, m, cell.get("bias_var", 0.0))
    return rows.assign(**{name: rows[name] - math.log(cell["width"]) for name in ("log_mode", "log_mode_back")})


def worked_out(law: Callable[[pd.Series], pd.DataFrame], cell: pd.Series) -> pd.DataFrame:
    """The law of the cell, computed once in a process: each figure of a study asks for it again, and each table."""
    fields = tuple((name, None if pd.isna(value) else value) for name, value in cell.items())
    return once(law, theory_of(cell), fields).copy()


@functools.lru_cache(maxsize=2048)
def once(law: Callable[[pd.Series], pd.DataFrame], _theory: BodyTheory, fields: tuple) -> pd.DataFrame:
    return law(pd.Series({name: math.nan if value is None else value for name, value in fields}))


@takes(cell=ROW)
def layer_gains(cell: pd.Series) -> np.ndarray:
    """The mean squared singular value of each layer's Jacobian at infinite width.

    Returns:
        chi of layers 2..depth, (depth - 1,), dimensionless; nan where theory has no answer.
    """
    return layer_theory(cell)["chi"].to_numpy()
