"""Jacobians of the commonest layers in closed form: a scaled weight matrix, without a backward pass per row."""

from collections.abc import Callable, Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowstudy import names
from flowstudy.nets.blocks import runs_as

# Modules that act unit by unit, in eval mode; the derivative comes from autograd, so their options do not matter.
UNITWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardtanh, nn.Softplus, nn.Identity)

# By class of block, which has an `affine` and the name of its `activation`: its Jacobian (*more, sample, outputs,
# inputs), as a function of that name, the inputs, and the affine map's outputs there and weights (*more, rows, inputs).
# `flowstudy.kinds` fills it.
BLOCK_RULES: dict[type[nn.Module], Callable[[str, Tensor, Tensor, Tensor], Tensor]] = {}
Layer = tuple[object, Float[Tensor, "sample *inputs"]]   # a layer, and its inputs


def layer_rule(function: object, x: Float[Tensor, "sample *inputs"]) -> Float[Tensor, "sample outputs inputs"] | None:
    """d function(x) / dx of every sample where the layer has a closed form, else None: the general way serves it."""
    return None if sort_of((function, x)) is None else jacobians_of_sort([(function, x)])[0]


def sort_of(layer: Layer) -> Hashable | None:
    """What layers must have in common for their closed forms to be computed together; None if the layer has none.

    Known are the blocks of `BLOCK_RULES` and `nn.Linear`, alone or followed by unit-wise modules (phi' times the rows
    of W): exactly these classes, since a subclass may compute something else, and without hooks.
    """
    function, x = layer
    if x.ndim != 2 or not isinstance(function, nn.Module) or not all(runs_as(m, type(m)) for m in function.modules()):
        return None
    names.meet_kinds()
    affine, after = affine_and_after(function)
    if type(affine) is not nn.Linear:
        return None
    shapes = x.shape, x.dtype, x.device, affine.weight.shape
    if type(function) in BLOCK_RULES:
        return type(function), function.activation, shapes
    if not all(type(m) in UNITWISE for m in after):
        return None
    return tuple((type(m), m.extra_repr()) for m in after), shapes


def affine_and_after(function: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The layer's affine map, and the modules that follow it."""
    if type(function) in BLOCK_RULES:
        return function.affine, []
    affine, *after = function if type(function) is nn.Sequential and len(function) else [function]
    return affine, after


def affine_rows(function: nn.Module) -> int:
    """Rows of the layer's affine map."""
    return len(affine_and_after(function)[0].weight)


def jacobians_of_sort(layers: Sequence[Layer]) -> Float[Tensor, "layer sample outputs inputs"]:
    """The closed forms of layers of one sort.

    Affine maps are applied one by one, as in the model's own pass: together they would round otherwise, and where an
    activation has a kink at zero, that can be another Jacobian.
    """
    functions, inputs = zip(*layers, strict=True)
    affines, after = [affine_and_after(function)[0] for function in functions], affine_and_after(functions[0])[1]
    with torch.no_grad():
        pre = torch.stack([affine(x) for affine, x in zip(affines, inputs, strict=True)])
    weight = torch.stack([affine.weight.detach() for affine in affines])
    if type(functions[0]) in BLOCK_RULES:
        return BLOCK_RULES[type(functions[0])](functions[0].activation, torch.stack(inputs), pre, weight)
    return plain_rule(nn.Sequential(*after), pre, weight)


def plain_rule(activation: Callable[[Tensor], Tensor], pre: Float[Tensor, "*more sample outputs"],
               weight: Float[Tensor, "*more outputs inputs"]) -> Float[Tensor, "*more sample outputs inputs"]:
    return value_and_slope(activation, pre)[1].unsqueeze(-1) * weight.unsqueeze(-3)


def value_and_slope(activation: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """phi(h), and phi'(h) by autograd: a unit-wise function's Jacobian is the gradient of its sum."""
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        value = activation(leaf.clone())  # a clone: it may work in place
        if value.grad_fn is None:
            return value.detach(), torch.zeros_like(h)
        return value.detach(), torch.autograd.grad(value, leaf, torch.ones_like(value))[0]
