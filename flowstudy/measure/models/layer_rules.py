"""Jacobians of the commonest layers in closed form: a scaled weight matrix, without a backward pass per row."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowstudy import names
from flowstudy.nets.blocks import runs_as

# Modules that act unit by unit, in eval mode; the derivative comes from autograd, so their options do not matter.
UNITWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardtanh, nn.Softplus, nn.Identity)

# By class of block, which has an `affine`: its Jacobian at inputs (sample, features).  `flowstudy.kinds` fills it.
BLOCK_RULES: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {}


def layer_rule(function: object, x: Float[Tensor, "sample *inputs"]) -> Float[Tensor, "sample outputs inputs"] | None:
    """d function(x) / dx of every sample where the layer is one of these, else None: the general way serves it.

    Known are the blocks of `BLOCK_RULES` and `nn.Linear`, alone or followed by unit-wise modules (phi' times the rows
    of W): exactly these classes, since a subclass may compute something else, and without hooks.
    """
    if x.ndim != 2 or not isinstance(function, nn.Module) or not all(runs_as(m, type(m)) for m in function.modules()):
        return None
    names.meet_kinds()
    if type(function) in BLOCK_RULES:
        return BLOCK_RULES[type(function)](function, x) if type(function.affine) is nn.Linear else None
    affine, *after = function if type(function) is nn.Sequential and len(function) else [function]
    if type(affine) is nn.Linear and all(type(module) in UNITWISE for module in after):
        return plain_rule(affine, nn.Sequential(*after), x)
    return None


def plain_rule(affine: nn.Linear, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        h = affine(x)
    return value_and_slope(activation, h)[1].unsqueeze(-1) * affine.weight.detach()


def value_and_slope(activation: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """phi(h), and phi'(h) by autograd: a unit-wise function's Jacobian is the gradient of its sum."""
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        value = activation(leaf.clone())  # a clone: it may work in place
        if value.grad_fn is None:
            return value.detach(), torch.zeros_like(h)
        return value.detach(), torch.autograd.grad(value, leaf, torch.ones_like(value))[0]
