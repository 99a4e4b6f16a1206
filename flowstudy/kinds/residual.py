"""Residual nets without normalisation: `y = x + activation(affine(x))`."""


import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowstudy import theory
from flowstudy.measure.models.layer_rules import plain_rule
from flowstudy.nets import ACTIVATIONS, ResidualBlock, ResidualNet
from flowstudy.predictions.theories import CarryingTheory, relu_masks
from flowstudy.train.stacks.stacked_layers import Kept, PlainLayer, Scratch

from .kind import Kind


def residual_jacobian(activation: str, _x: Tensor, pre: Tensor, weight: Tensor) -> Tensor:
    """The Jacobian of the plain layer plus the identity."""
    result = plain_rule(ACTIVATIONS[activation], pre, weight)
    result.diagonal(dim1=-2, dim2=-1).add_(1)
    return result


class ResidualLayer(PlainLayer):
    """y = x + f(W x + b)."""

    compiled = "residual"

    def keep(self, nets: int, width: int, samples: int) -> Kept:
        kept = super().keep(nets, width, samples)
        out = torch.empty_like(kept.h)
        return kept._replace(out=out, out_transposed=out.mT)

    def forward(self, x: Tensor, kept: Kept, scratch: Scratch) -> Tensor:
        self.affine.forward(x, kept.pre)
        self.activation.forward(kept.pre, kept.h, scratch.unit)
        return torch.add(x, kept.h, out=kept.out)

    def backward(self, gradient: Tensor, x: Tensor, x_transposed: Tensor, kept: Kept, scratch: Scratch) -> None:
        """Update the layer; `gradient`, of the output, becomes that of the input."""
        self.activation.backward(gradient, kept.pre, kept.h, scratch.pre)
        gradient.baddbmm_(self.affine.transposed, scratch.pre)
        self.affine.update(scratch.pre, x_transposed)


class ResidualTheory(CarryingTheory):
    """Gaussian weights, infinite width and the mean mode: `theory.residual_net`, `theory.mean_mode`."""

    def moments(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float, c0: float,
                bias_var: float) -> pd.DataFrame:
        return theory.residual_net(cell["activation"], layers, weight_var, q0=q0, m0=m0, c0=c0, bias_var=bias_var)

    def mean_mode(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float,
                  bias_var: float) -> pd.DataFrame:
        return theory.mean_mode("residual", cell["activation"], layers, 0.0, weight_var, weight_var, q0=q0, m0=m0,
                                bias_var=bias_var)

    def carried(self, cell: pd.Series, weight_var: float, q: np.ndarray) -> float:
        return 1.0

    def independent_masks(self, cell: pd.Series, weight_var: float) -> float:
        """3/4 for each ReLU layer with He's weights; the first layer is plain, 1/2."""
        return relu_masks("residual", cell, weight_var)


RESIDUAL = Kind(name="residual", label="residual", net=ResidualNet, block=ResidualBlock, width=71, gate_bias=None,
                stacked=ResidualLayer, jacobian=residual_jacobian, theory=ResidualTheory())
