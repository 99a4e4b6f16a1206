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


class Affine:
    """W x + b of every net, and how they learn: v = m v + g, W += v, with g scaled by minus the learning rate."""

    def __init__(self, weight: Tensor, bias: Tensor, momentum: Tensor):
        self.weight, self.bias, self.momentum = weight, bias.unsqueeze(-1), momentum
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def forward(self, x: Tensor, out: Tensor) -> None:
        torch.baddbmm(self.bias, self.weight, x, out=out)

    def update(self, delta: Tensor, x: Tensor) -> None:
        """`delta` is the scaled gradient of the output, `x` was the input."""
        self.weight_velocity.mul_(self.momentum).baddbmm_(delta, x.mT)
        self.weight.add_(self.weight_velocity)
        self.bias_velocity.mul_(self.momentum).add_(delta.sum(-1, keepdim=True))
        self.bias.add_(self.bias_velocity)


class Kept(NamedTuple):
    """What a layer keeps of its forward pass: pre-activations (gates included), H, and the output."""

    pre: Tensor
    h: Tensor
    out: Tensor


class Scratch(NamedTuple):
    """What all layers share: `pre` of a layer's pre-activations' shape, `unit` of its output's."""

    pre: Tensor
    unit: Tensor


class PlainLayer:
    """y = f(W x + b)."""

    pre_rows = 1  # pre-activations per unit

    def __init__(self, affine: Affine, activation: Activation):
        self.affine, self.activation = affine, activation

    def keep(self, nets: int, width: int, samples: int) -> Kept:
        pre = self.affine.weight.new_empty(nets, width, samples)
        h = torch.empty_like(pre) if self.activation.keeps_input else pre
        return Kept(pre, h, h)

    def forward(self, x: Tensor, kept: Kept, scratch: Scratch) -> Tensor:
        self.affine.forward(x, kept.pre)
        self.activation.forward(kept.pre, kept.h, scratch.unit)
        return kept.out

    def backward(self, gradient: Tensor, x: Tensor, kept: Kept, scratch: Scratch, to_input: bool = True) -> None:
        """Update the layer; `gradient`, of the output, becomes that of the input."""
        delta = scratch.pre
        self.activation.backward(gradient, kept.pre if self.activation.keeps_input else kept.h, delta)
        if to_input:
            torch.bmm(self.affine.weight.mT, delta, out=gradient)
        self.affine.update(delta, x)


class HighwayLayer:
    """y = x + T (H - x), T = sigmoid(W_T x + b_T), H = f(W_H x + b_H); W_H and W_T in one product."""

    pre_rows = 2

    def __init__(self, affine: Affine, activation: Activation):
        self.affine, self.activation = affine, activation

    def keep(self, nets: int, width: int, samples: int) -> Kept:
        pre = self.affine.weight.new_empty(nets, 2 * width, samples)
        out = self.affine.weight.new_empty(nets, width, samples)
        return Kept(pre, torch.empty_like(out) if self.activation.keeps_input else pre[:, :width], out)

    def forward(self, x: Tensor, kept: Kept, scratch: Scratch) -> Tensor:
        self.affine.forward(x, kept.pre)
        pre, t = kept.pre.chunk(2, 1)
        self.activation.forward(pre, kept.h, scratch.unit)
        # In place on half of each net's rows: torch's kernel then goes net by net, as activations.py asks.
        t.sigmoid_()
        return torch.lerp(x, kept.h, t, out=kept.out)

    def backward(self, gradient: Tensor, x: Tensor, kept: Kept, scratch: Scratch) -> None:
        """Update the layer; `gradient`, of the output, becomes that of the input."""
        pre, t = kept.pre.chunk(2, 1)
        delta_h, delta_t = scratch.pre.chunk(2, 1)
        torch.sub(kept.h, x, out=delta_t).mul_(gradient)
        aten.sigmoid_backward.grad_input(delta_t, t, grad_input=delta_t)
        torch.mul(gradient, t, out=scratch.unit)
        self.activation.backward(scratch.unit, pre if self.activation.keeps_input else kept.h, delta_h)
        gradient.sub_(scratch.unit).baddbmm_(self.affine.weight.mT, scratch.pre)
        self.affine.update(scratch.pre, x)


class ResidualLayer(PlainLayer):
    """y = x + f(W x + b)."""

    def keep(self, nets: int, width: int, samples: int) -> Kept:
        pre, h, _ = super().keep(nets, width, samples)
        return Kept(pre, h, torch.empty_like(h))

    def forward(self, x: Tensor, kept: Kept, scratch: Scratch) -> Tensor:
        self.affine.forward(x, kept.pre)
        self.activation.forward(kept.pre, kept.h, scratch.unit)
        return torch.add(x, kept.h, out=kept.out)

    def backward(self, gradient: Tensor, x: Tensor, kept: Kept, scratch: Scratch) -> None:
        """Update the layer; `gradient`, of the output, becomes that of the input."""
        self.activation.backward(gradient, kept.pre if self.activation.keeps_input else kept.h, scratch.pre)
        gradient.baddbmm_(self.affine.weight.mT, scratch.pre)
        self.affine.update(scratch.pre, x)
