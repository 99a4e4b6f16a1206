"""Jacobians of the commonest layers in closed form: no pass per row, for what is a scaled weight matrix."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowstudy.nets import ACTIVATIONS, HighwayBlock, PlainBlock, ResidualBlock
from flowstudy.nets.blocks import runs_as

# Modules that act unit by unit, in eval mode; the derivative comes from autograd, so their options do not matter.
UNITWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardtanh, nn.Softplus, nn.Identity)


def layer_rule(function: object, x: Float[Tensor, "sample *inputs"]) -> Float[Tensor, "sample outputs inputs"] | None:
    """d function(x) / dx of every sample where the layer is one of these, else None: the general way serves it.

    A plain layer phi(W x + b): phi' times the rows of W; a residual layer, I more.  A highway layer:
    T H' W_H + (H - x) T' W_T + diag(1 - T).  Known are the three blocks and `nn.Linear`, alone or followed by
    unit-wise modules: exactly these classes, since a subclass may compute something else, and without hooks.
    """
    if x.ndim != 2 or not isinstance(function, nn.Module) or not all(runs_as(m, type(m)) for m in function.modules()):
        return None
    if type(function) in BLOCK_RULES:
        return BLOCK_RULES[type(function)](function, x) if type(function.affine) is nn.Linear else None
    affine, *after = function if type(function) is nn.Sequential and len(function) else [function]
    if type(affine) is nn.Linear and all(type(module) in UNITWISE for module in after):
        return plain_rule(affine, nn.Sequential(*after), x)
    return None


def plain_rule(affine: nn.Linear, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        h = affine(x)
    return slope(activation, h).unsqueeze(-1) * affine.weight.detach()


def plain_block_rule(block: PlainBlock, x: Tensor) -> Tensor:
    return plain_rule(block.affine, ACTIVATIONS[block.activation], x)


def residual_rule(block: ResidualBlock, x: Tensor) -> Tensor:
    result = plain_rule(block.affine, ACTIVATIONS[block.activation], x)
    result.diagonal(dim1=-2, dim2=-1).add_(1)
    return result


def highway_rule(block: HighwayBlock, x: Tensor) -> Tensor:
    with torch.no_grad():
        h, t = block.affine(x).chunk(2, -1)
        of_h, of_t = block.affine.weight.detach().chunk(2)
        gate = torch.sigmoid(t)
    activation = ACTIVATIONS[block.activation]
    through_h = gate * slope(activation, h)
    through_t = slope(torch.sigmoid, t) * (activation(h) - x)
    result = through_h.unsqueeze(-1) * of_h
    result.addcmul_(through_t.unsqueeze(-1), of_t)
    result.diagonal(dim1=-2, dim2=-1).add_(1 - gate)
    return result


BLOCK_RULES = {PlainBlock: plain_block_rule, ResidualBlock: residual_rule, HighwayBlock: highway_rule}


def slope(activation: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """phi'(h), by autograd: a unit-wise function's Jacobian is the gradient of its sum."""
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        value = activation(leaf.clone())  # a clone: it may work in place
        if value.grad_fn is None:
            return torch.zeros_like(h)
        return torch.autograd.grad(value.sum(), leaf)[0]
