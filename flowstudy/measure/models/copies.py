"""Measuring without touching: a float64 copy of the model."""

import copy
import functools
import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn

from flowstudy.refusal import RefusalError, RefusalTypeError

IMMUTABLE = {type(None), bool, int, float, str}
CONTAINERS = {dict, OrderedDict, list, set}
TENSORS = {Tensor, nn.Parameter}


def check_module(call: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise RefusalTypeError(f"{call}: `model` must be an nn.Module, got {type(model).__name__}.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise RefusalTypeError(f"{call}: `model` must be made of ordinary modules, got a {type(module).__name__}"
                                   f"{f' at {name!r}' if name else ''}, which computes in the dtype that it was "
                                   "scripted in. Pass the module that it was made from.")
        own = (*module._parameters.values(), *module._buffers.values())
        if any(isinstance(tensor, nn.parameter.UninitializedTensorMixin) for tensor in own):
            raise RefusalError(f"{call}: `model` must have its weights, got a {type(module).__name__}"
                               f"{f' at {name!r}' if name else ''} without any yet. Run a batch through it first.")


def own_tensor(value: object) -> object:
    """A tensor of the caller's, made here: one that inference mode made cannot be differentiated through."""
    return value.detach().clone() if isinstance(value, Tensor) and value.is_inference() else value


def float64_copy(call: str, model: nn.Module, *, frozen: bool = True) -> nn.Module:
    """A float64 copy, on the model's device and in its mode.

    Args:
        frozen: no parameter asks for a gradient; else those do that do in the model.
    """
    check_module(call, model)
    copied = fast_copy(model)
    tensors = itertools.chain(model.parameters(), model.buffers())
    if any(type(tensor) not in TENSORS for tensor in tensors):  # deepcopy made these, as they were
        copied.double().requires_grad_(False)
    if not frozen:
        for own, original in zip(copied.parameters(), model.parameters(), strict=True):
            own.requires_grad_(original.requires_grad)
    return copied


def fast_copy(model: nn.Module) -> nn.Module:
    """`copy.deepcopy(model).double().requires_grad_(False)` of ordinary tensors, plain modules in a fifth of its time.

    A thousand small layers take deepcopy longer than their Jacobian takes. What is its work: the twenty dicts and flags
    of every module, one by one, though nearly all are empty or immutable. Those are made here; what else there is, and
    modules that say how they are copied, are left to it.
    """
    modules = list(model.modules())
    memo: dict[int, object] = {
        id(tensor): float64_tensor(tensor)
        for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())
        if type(tensor) in TENSORS
    }
    plain = [module for module in modules if is_plain(type(module))]
    memo |= {id(module): object.__new__(type(module)) for module in plain}
    for module in reversed(plain):   # inner ones first: what is around them may look at them while it is copied
        twin = vars(memo[id(module)])
        twin.update(vars(module))
        twin.pop("_compiled_call_impl", None)   # torch.compile's; Module's own __getstate__ drops it too
        for name, value in twin.items():
            kind = type(value)
            if kind not in IMMUTABLE:
                twin[name] = kind() if kind in CONTAINERS and not value else copy.deepcopy(value, memo)
    return copy.deepcopy(model, memo)


def float64_tensor(tensor: Tensor) -> Tensor:
    dtype = torch.float64 if tensor.is_floating_point() else torch.complex128 if tensor.is_complex() else tensor.dtype
    data = tensor.detach().to(dtype, copy=True)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


@functools.cache
def is_plain(kind: type) -> bool:
    """Copied as any nn.Module is: a new object with a deep copy of its attributes."""
    rules = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    return all(getattr(kind, rule, None) is getattr(nn.Module, rule, None) for rule in rules)
