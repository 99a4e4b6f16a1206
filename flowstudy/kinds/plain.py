"""Plain nets: `activation(affine(x))`, layer after layer."""

import math

import numpy as np
import pandas as pd
from torch import Tensor

from flowstudy import theory
from flowstudy.measure.models.layer_rules import plain_rule
from flowstudy.nets import ACTIVATIONS, PlainBlock, PlainNet
from flowstudy.predictions.theories import NOT_KNOWN, BodyTheory, relu_masks
from flowstudy.theory.mean_field.activations import activation_named
from flowstudy.theory.random_matrix.fluctuations import LIVE
from flowstudy.train.stacks.stacked_layers import PlainLayer

from .kind import Kind


def plain_jacobian(activation: str, _x: Tensor, pre: Tensor, weight: Tensor) -> Tensor:
    return plain_rule(ACTIVATIONS[activation], pre, weight)


class PlainTheory(BodyTheory):
    """All of it: wide nets' signals and spectra, and what finite width changes."""

    covers_orthogonal = True
    first_order = True

    def layers(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float,
               bias_var: float) -> pd.DataFrame:
        return theory.plain(cell["activation"], layers, weight_var, bias_var, q0=q0)

    def moments(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float, c0: float,
                bias_var: float) -> pd.DataFrame:
        frame = theory.plain(cell["activation"], layers, weight_var, q0=q0, c0=c0, bias_var=bias_var)
        spread = [theory.spectrum_variance(cell["activation"], 1, q=length) for length in frame["length"]]
        return frame.assign(P=1 + np.cumsum(spread))  # the layers are free of each other: their variances add up

    def correlations(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float, c0: float,
                     bias_var: float) -> pd.DataFrame:
        # Gates that are wide open make the plain layer, with the mean of its outputs.
        return theory.highway(cell["activation"], layers, math.inf, weight_var, 0.0, q0=q0, m0=m0, c0=c0,
                              bias_var=bias_var)

    def carried(self, cell: pd.Series, weight_var: float, q: np.ndarray) -> float:
        return 0.0

    def independent_masks(self, cell: pd.Series, weight_var: float) -> float:
        """1/2 for each ReLU layer with He's weights."""
        return relu_masks("plain", cell, weight_var)

    def exact_step(self, cell: pd.Series, weight_var: float) -> theory.Moments:
        """Exact for linear and ReLU nets without biases: see `predictions.gradients`."""
        if cell["activation"] not in LIVE or cell["bias_var"] or not math.isfinite(weight_var):
            return NOT_KNOWN
        weights = "orthogonal" if cell["init"] == "orthogonal" else "gaussian"
        return theory.Moments(*map(float, theory.log_jacobian_norm(cell["width"], 1, cell["activation"], weights,
                                                                   weight_var)))

    def rank(self, cell: pd.Series) -> float:
        if cell["activation"] != "relu" or cell["bias_var"]:
            return math.nan
        return float(theory.expected_rank(cell["width"], cell["depth"] - 1))

    def mean_log(self, cell: pd.Series, weight_var: float, layers: pd.DataFrame) -> float:
        """The weights' part at the nets' own width, the slopes' part at infinite width; ReLU nets have zeros."""
        if layers["chi"].isna().any() or cell["activation"] == "relu":
            return math.nan
        if cell["init"] == "orthogonal":
            weights = len(layers) * math.log(weight_var) / 2
        else:
            weights = float(theory.sum_log_singular_values(cell["width"], len(layers), weight_var).mean) / cell["width"]
        phi = activation_named("mean_log", cell["activation"])
        slopes = (float(phi.mean(lambda h: np.log(np.abs(phi.slope(h))), length)) for length in layers["length"])
        return weights + sum(slopes)

    def relative_variance(self, cell: pd.Series, layers: pd.DataFrame) -> float:
        if layers["chi"].isna().any():
            return math.nan
        weights = "orthogonal" if cell["init"] == "orthogonal" else "gaussian"
        by_layer = theory.spectrum_variance(cell["activation"], 1, weights, layers["length"].to_numpy())
        return float(np.broadcast_to(by_layer, len(layers)).sum())  # one number where it depends on no q

    def is_free_product(self, cell: pd.Series) -> bool:
        return cell["activation"] == "linear" and cell["init"] != "orthogonal"


# The width of 71 gives about 5,000 parameters a layer, as a highway net of width 50 has (paper, section 3.1).
PLAIN = Kind(name="plain", label="plain", net=PlainNet, block=PlainBlock, width=71, gate_bias=None, stacked=PlainLayer,
             jacobian=plain_jacobian, theory=PlainTheory())
