"""Layers of many fully connected nets at once: forward, backward and update by hand, without allocating.

Activations are (net, unit, sample): the two halves of a fused gate product are blocks then, and every product is one
batched matrix product.  A layer's update follows its backward product while weights and gradient are in the cache, and
the gradient is added to the velocity by the product itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .activations import Activation

aten = torch.ops.aten


class Biases:
    """Of layers of one shape, and how they learn: v = m v + g, b += v; all in three calls.

    Args:
        values: (layer, net, unit).
        momentum: (net, 1, 1).
    """

    def __init__(self, values: Tensor, momentum: Tensor):
        self.values, self.momentum = values.unsqueeze(-1), momentum
        self.velocity, self.gradient = torch.zeros_like(self.values), torch.empty_like(self.values)

    def update(self) -> None:
        self.velocity.mul_(self.momentum).add_(self.gradient)
        self.values.add_(self.velocity)


class Affine:
    """W x + b of every net, and how W learns: v = m v + g, W += v, with g scaled by minus the learning rate.

    Args:
        weight: (net, unit, input).
        biases: `layer` is this one's place among them.
        momentum: (net, 1, 1).
    """

    def __init__(self, weight: Tensor, biases: Biases, layer: int, momentum: Tensor):
        self.weight, self.momentum, self.velocity = weight, momentum, torch.zeros_like(weight)
        self.bias, self.bias_velocity = biases.values[layer], biases.velocity[layer]
        self.bias_gradient = biases.gradient[layer]
        self.transposed = weight.mT  # views are kept: a step makes hundreds of calls, each waiting for Python

    def forward(self, x: Tensor, out: Tensor) -> None:
        torch.baddbmm(self.bias, self.weight, x, out=out)

    def update(self, delta: Tensor, x_transposed: Tensor) -> None:
        """`delta` is the scaled gradient of the output; the bias waits for `Biases.update`."""
        self.velocity.mul_(self.momentum).baddbmm_(delta, x_transposed)
        self.weight.add_(self.velocity)
        torch.sum(delta, -1, keepdim=True, out=self.bias_gradient)


class Kept(NamedTuple):
    """What a layer keeps of its forward pass: all pre-activations, those of H, H itself, the gate, the output."""

    pre: Tensor
    pre_h: Tensor
    h: Tensor
    gate: Tensor | None
    out: Tensor
    out_transposed: Tensor


class Scratch(NamedTuple):
    """Buffers that every layer reuses.

    pre: (net, rows, sample), rows being all pre-activations of a layer; pre_h, gate: views of it, the rows of H and of
    the gate; unit: (net, width, sample).
    """

    pre: Tensor
    pre_h: Tensor
    gate: Tensor | None
    unit: Tensor


def scratch_of(pre: Tensor, width: int, unit: Tensor) -> Scratch:
    return Scratch(pre, pre[:, :width], pre[:, width:] if pre.shape[1] > width else None, unit)


class PlainLayer:
    """y = f(W x + b)."""

    pre_rows = 1  # pre-activations per unit
    compiled = "plain"  # what the compiled steps call it; a subclass without its own has no compiled steps

    def __init__(self, affine: Affine, activation: Activation):
        self.affine, self.activation = affine, activation

    def keep(self, nets: int, width: int, samples: int) -> Kept:
        pre = self.affine.weight.new_empty(nets, width, samples)
        h = torch.empty_like(pre) if self.activation.keeps_input else pre
        return Kept(pre, pre, h, None, h, h.mT)

    def forward(self, x: Tensor, kept: Kept, scratch: Scratch) -> Tensor:
        self.affine.forward(x, kept.pre)
        self.activation.forward(kept.pre, kept.h, scratch.unit)
        return kept.out

    def backward(self, gradient: Tensor, x: Tensor, x_transposed: Tensor, kept: Kept, scratch: Scratch,
                 to_input: bool = True) -> None:
        """Update the layer; `gradient`, of the output, becomes that of the input."""
        delta = scratch.pre_h
        self.activation.backward(gradient, kept.pre, kept.h, delta)
        if to_input:
            torch.bmm(self.affine.transposed, delta, out=gradient)
        self.affine.update(delta, x_transposed)
