"""Measuring without touching: a copy of the model, in the dtype in which it is measured."""

import copy
import functools
import itertools
import types
import weakref
from collections import OrderedDict
from collections.abc import Collection

import torch
from torch import Tensor, nn

from flowstudy.refusal import RefusalError, RefusalTypeError

from .precision.attempts import measured_dtype, own_dtype
from .precision.held import can_be_copied, everything_in, rebound

IMMUTABLE = {type(None), bool, int, float, str}
CONTAINERS = {dict, OrderedDict, list, set}
TENSORS = {Tensor, nn.Parameter}
REBOUND = types.FunctionType, functools._lru_cache_wrapper, weakref.ref   # objects that deepcopy does not copy


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
    """A clone of the caller's tensor, since autograd cannot use a tensor that was made in inference mode."""
    return value.detach().clone() if isinstance(value, Tensor) and value.is_inference() else value


def float64_copy(call: str, model: nn.Module, *, frozen: bool = True) -> nn.Module:
    """A copy to measure, on the model's device and in its mode: in float64; in its own dtype if that is what is asked.

    All tensors that the model holds are copied, those in plain attributes, in lists and in closures of its functions
    too; what was computed from weights and kept is copied as a constant.  What cannot be copied and is no tensor (a
    lock, an open file, a generator) the copy shares with the model.  Where transformers' or diffusers' models
    checkpoint, the copy does not: the numbers are the same.

    Args:
        frozen: no parameter asks for a gradient; else those do that do in the model.
    """
    check_module(call, model)
    copied = fast_copy(call, model)
    tensors = itertools.chain(model.parameters(), model.buffers())
    if any(type(tensor) not in TENSORS for tensor in tensors):  # subclasses, which deepcopy left in their own dtype
        copied.requires_grad_(False)._apply(lambda t: t.to(measured_dtype(t.dtype)))
    for module in copied.modules():
        if getattr(module, "gradient_checkpointing", None) is True:
            module.gradient_checkpointing = False
    if not frozen:
        for own, original in zip(copied.parameters(), model.parameters(), strict=True):
            own.requires_grad_(original.requires_grad)
    return copied


def check_own_weights(call: str, model: nn.Module, leaves: Collection[int]) -> None:
    """A copy that computes with weights of the model itself would hide their gradients.

    Args:
        leaves: the ids of all tensors that the loss of the copy depends on.
    """
    if shared := [name for name, p in model.named_parameters() if id(p) in leaves]:
        raise RefusalError(f"{call}: `model` must be one that can be copied, got {type(model).__name__}, whose copy "
                           f"computes with the weights {shared[0]!r} of the model itself, kept where copy.deepcopy "
                           "does not reach (a weak dictionary, a global?). Reach them in forward through the model's "
                           "own attributes.")


def own_copy(call: str, model: nn.Module) -> nn.Module:
    """A copy in the model's own dtype, whose parameters can be trained as those of the model."""
    with own_dtype():
        return float64_copy(call, model, frozen=False)


def fast_copy(call: str, model: nn.Module) -> nn.Module:
    """`copy.deepcopy(model).double().requires_grad_(False)`, in a fifth of the time for models of plain modules.

    deepcopy of a thousand small layers takes longer than their Jacobian, because it copies some twenty dicts and flags
    per module, nearly all empty or immutable.  We copy those directly and leave the rest, and modules that define how
    they are copied, to deepcopy.
    """
    modules = list(model.modules())
    memo: dict[int, object] = {
        id(tensor): float64_tensor(tensor)
        for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())
        if type(tensor) in TENSORS
    }
    plain = [module for module in modules if is_plain(type(module))]
    memo |= {id(module): object.__new__(type(module)) for module in plain}
    for module in reversed(plain):   # inner modules first: an outer one may read them while it is copied
        twin = vars(memo[id(module)])
        twin.update(vars(module))
        twin.pop("_compiled_call_impl", None)   # torch.compile's; Module's own __getstate__ drops it too
        for name, value in twin.items():
            kind = type(value)
            if kind not in IMMUTABLE:
                empty = kind in CONTAINERS and not value
                twin[name] = kind() if empty else deep_copy(call, f"{type(module).__name__}.{name}", value, memo)
    return deep_copy(call, type(model).__name__, model, memo)


def deep_copy(call: str, name: str, value: object, memo: dict[int, object]) -> object:
    """`copy.deepcopy`, with our own copies of tensors and functions; objects that it cannot copy are shared."""
    if id(value) in memo:
        return memo[id(value)]
    inside = everything_in(value, memo)
    memo |= {id(held): float64_tensor(held) for held in inside if type(held) in TENSORS}
    for held in reversed(inside):   # a function that another one calls comes before that one
        if isinstance(held, REBOUND) and (twin := rebound(held, memo)) is not held:
            memo[id(held)] = twin
    if id(value) in memo:
        return memo[id(value)]
    others, known = [held for held in inside if id(held) not in memo], len(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:   # whatever the objects that a model holds may raise
        for key in list(memo)[known:]:   # unfinished copies of the failed attempt, some of objects that are gone
            del memo[key]
        memo |= {id(held): held for held in others if not can_be_copied(held)}
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise RefusalError(f"{call}: `model` must be one that can be copied, got {name}, of which copy.deepcopy says "
                           f"{' '.join(str(error).split())!r}. Give its class a __deepcopy__, or delete it.") from error


def float64_tensor(tensor: Tensor) -> Tensor:
    data = tensor.detach().to(measured_dtype(tensor.dtype), copy=True)
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


@functools.cache
def is_plain(kind: type) -> bool:
    """Whether the class has no copying rules of its own, so that a copy is a new object with copied attributes."""
    rules = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    return all(getattr(kind, rule, None) is getattr(nn.Module, rule, None) for rule in rules)
