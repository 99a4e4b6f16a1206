"""Highway nets: `y = x + T (H - x)`, with a gate T that the net learns."""

import numpy as np
import pandas as pd
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from flowstudy import theory
from flowstudy.measure.models.layer_rules import value_and_slope
from flowstudy.nets import ACTIVATIONS, HighwayBlock, HighwayNet
from flowstudy.predictions.theories import CarryingTheory
from flowstudy.theory.mean_field.highway import Gate
from flowstudy.train.stacks.activations import Activation
from flowstudy.train.stacks.stacked_layers import Affine, Kept, Scratch

from .kind import Kind

aten = torch.ops.aten
NODES = 24  # layers at which ln |det J| of a layer is computed; it is smooth in the logarithm of the layer number


def highway_jacobian(activation: str, x: Tensor, pre: Tensor, weight: Tensor) -> Tensor:
    """T H' W_H + (H - x) T' W_T + diag(1 - T)."""
    h, t = pre.chunk(2, -1)
    of_h, of_t = weight.unsqueeze(-3).chunk(2, -2)
    gate = torch.sigmoid(t)
    proposed, slope = value_and_slope(ACTIVATIONS[activation], h)
    result = (gate * slope).unsqueeze(-1) * of_h
    result.addcmul_((gate * (1 - gate) * (proposed - x)).unsqueeze(-1), of_t)
    result.diagonal(dim1=-2, dim2=-1).add_(1 - gate)
    return result


class HighwayLayer:
    """y = x + T (H - x), T = sigmoid(W_T x + b_T), H = f(W_H x + b_H); W_H and W_T in one product."""

    pre_rows = 2
    compiled = "highway"

    def __init__(self, affine: Affine, activation: Activation):
        self.affine, self.activation = affine, activation

    def keep(self, nets: int, width: int, samples: int) -> Kept:
        pre = self.affine.weight.new_empty(nets, 2 * width, samples)
        out = self.affine.weight.new_empty(nets, width, samples)
        pre_h, gate = pre.chunk(2, 1)
        return Kept(pre, pre_h, torch.empty_like(out) if self.activation.keeps_input else pre_h, gate, out, out.mT)

    def forward(self, x: Tensor, kept: Kept, scratch: Scratch) -> Tensor:
        self.affine.forward(x, kept.pre)
        self.activation.forward(kept.pre_h, kept.h, scratch.unit)
        # In place on half of each net's rows: torch's kernel then goes net by net, as activations.py asks.
        kept.gate.sigmoid_()
        return torch.lerp(x, kept.h, kept.gate, out=kept.out)

    def backward(self, gradient: Tensor, x: Tensor, x_transposed: Tensor, kept: Kept, scratch: Scratch) -> None:
        """Update the layer; `gradient`, of the output, becomes that of the input."""
        torch.sub(kept.h, x, out=scratch.gate).mul_(gradient)
        aten.sigmoid_backward.grad_input(scratch.gate, kept.gate, grad_input=scratch.gate)
        torch.mul(gradient, kept.gate, out=scratch.unit)
        self.activation.backward(scratch.unit, kept.pre_h, kept.h, scratch.pre_h)
        gradient.sub_(scratch.unit).baddbmm_(self.affine.transposed, scratch.pre)
        self.affine.update(scratch.pre, x_transposed)


class HighwayTheory(CarryingTheory):
    """Gaussian weights, infinite width and the mean mode: `theory.highway`, `theory.mean_mode`."""

    def moments(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float, c0: float,
                bias_var: float) -> pd.DataFrame:
        return theory.highway(cell["activation"], layers, cell["gate_bias"], weight_var, weight_var, q0=q0, m0=m0,
                              c0=c0, bias_var=bias_var)

    def mean_mode(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float,
                  bias_var: float) -> pd.DataFrame:
        return theory.mean_mode("highway", cell["activation"], layers, cell["gate_bias"], weight_var, weight_var,
                                q0=q0, m0=m0, bias_var=bias_var)

    def carried(self, cell: pd.Series, weight_var: float, q: np.ndarray) -> np.ndarray:
        """E (1 - T)^2."""
        return np.array([Gate(cell["gate_bias"], weight_var * mean_square).moments[0, 2] for mean_square in q])

    def mean_log(self, cell: pd.Series, weight_var: float, layers: pd.DataFrame) -> float:
        """ln |det J| / width of each layer's Jacobian J, summed over layers: computed at some, interpolated between."""
        if layers["chi"].isna().any():
            return float("nan")
        q = np.append(cell["activation_mean_square"], layers["q"].to_numpy()[:-1])
        m = np.append(cell["activation_mean"], layers["m"].to_numpy()[:-1])
        nodes = np.unique(np.geomspace(1, len(layers), NODES).astype(int))
        volumes = [theory.highway_log_volume(cell["activation"], cell["gate_bias"], weight_var, weight_var, q[i - 1],
                                             m[i - 1]) for i in nodes]
        if len(nodes) < 2:
            return float(np.sum(volumes))
        return float(PchipInterpolator(np.log(nodes), volumes)(np.log(np.arange(1, len(layers) + 1))).sum())


# The width is that of the paper's section 3.1.
HIGHWAY = Kind(name="highway", label="highway", net=HighwayNet, block=HighwayBlock, width=50, gate_bias=-2.0,
               stacked=HighwayLayer, jacobian=highway_jacobian, theory=HighwayTheory())
