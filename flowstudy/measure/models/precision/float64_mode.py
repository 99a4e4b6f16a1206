"""A mode in which the tensors that a model creates in its forward are float64, like its weights and its input.

Models create initial states, positions, masks and tables.  In torch's default dtype, float32, these fail to combine
with float64 weights, or round the values written into them.  A TorchFunctionMode sees the torch functions that the
calling thread calls from Python and nothing else: no default dtype is set and no function is replaced.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

functorch = torch._C._functorch
WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
        torch.complex64: torch.complex128, torch.complex32: torch.complex128}
DRAWS = {torch.rand, torch.randn, torch.normal}   # drawn once: the numbers are those that the model draws
CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.cfloat, Tensor.chalf, Tensor.to, Tensor.type,
         Tensor.type_as}
OF_BITS = {Tensor.view}                           # view(dtype) reads the same bits as another type
IN_PLACE = {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__idiv__", "__itruediv__", "__ifloordiv__",
            "__imod__", "__ipow__"}


class Float64Mode(TorchFunctionMode):
    """New tensors of the default dtype become float64 or complex128: torch.zeros(3), torch.arange(3) / 2.

    Args:
        casts: whether explicit requests for a coarser dtype (`h.float()`, `dtype=torch.float32`) also give float64, and
            a coarser tensor that is combined with a float64 one is cast to float64.  If not, explicit casts are kept.
    """

    def __init__(self, *, casts: bool):
        super().__init__()
        self.casts = casts

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.autograd.grad:
            return self.backward_pass(*args, **kwargs)
        if self.casts and function not in OF_BITS:
            args, kwargs = met(function, asked_wide(args), {k: WIDE.get(v, v) if isinstance(v, torch.dtype) else v
                                                            for k, v in kwargs.items()})
        result = function(*args, **kwargs)
        if not isinstance(result, Tensor) or result.dtype not in WIDE or function in OF_BITS:
            return result
        if function in CASTS:
            return args[0].to(result.device, WIDE[result.dtype]) if self.casts else result
        if any_numbers([args, kwargs]) or "out" in kwargs or asks(args, kwargs):
            return result
        return made_wide(function, args, kwargs, result)

    def backward_pass(self, outputs: Sequence, inputs: Sequence, **how: object) -> tuple:
        """autograd.grad with the mode on, for forward code that runs again in it, as of a checkpoint.

        A mode is off while it handles a function.  torch passes autograd.grad to the mode if it is called on tensors,
        but not if it is called on their graph edges; so it is called again here on the edges, with the mode on.
        """
        tensors = [t for t in (*outputs, *inputs) if isinstance(t, Tensor)]
        if not all(t.requires_grad and not functorch.is_functorch_wrapped_tensor(t) for t in tensors):
            return torch.autograd.grad(outputs, inputs, **how)   # where there are no edges, or an error to be raised
        with torch.enable_grad():   # without, a leaf has none
            edges = [[get_gradient_edge(t) if isinstance(t, Tensor) else t for t in some] for some in (outputs, inputs)]
        filled = how.pop("materialize_grads", False)
        with self:
            found = torch.autograd.grad(*edges, **how | ({"allow_unused": True} if filled else {}))
        return tuple(torch.zeros_like(t) if g is None and filled else g for g, t in zip(found, inputs, strict=True))


def any_numbers(values: object) -> bool:
    """Whether a real or complex tensor is among the values; the result then has its dtype, not the default."""
    return any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in tree_leaves(values))


def asks(args: tuple, kwargs: dict) -> bool:
    """Whether the call names a dtype."""
    return any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))


def made_wide(function: Callable, args: tuple, kwargs: dict, result: Tensor) -> Tensor:
    """Call the function again so that its result is float64 without rounding to a coarser dtype first.

    The call passes `dtype=`; a function that has no such argument gets its integer tensors as float64.
    """
    wide = WIDE[result.dtype]
    if function in DRAWS:
        return result.to(wide)
    if function in (torch.where, Tensor.where):   # its condition must stay boolean
        args, kwargs = tree_map_only(float, lambda v: torch.tensor(v, dtype=wide, device=result.device), (args, kwargs))
        return function(*args, **kwargs)
    try:
        return function(*args, **kwargs | {"dtype": wide})
    except TypeError:   # it takes no dtype
        args, kwargs = tree_map_only(Tensor, lambda v: v.to(wide), (args, kwargs))
        return function(*args, **kwargs)


def asked_wide(args: tuple) -> tuple:
    return tuple(WIDE.get(v, v) if isinstance(v, torch.dtype) else v for v in args)


def met(function: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments, coarser tensors cast to float64 where both kinds occur; a tensor that is written to stays."""
    present = {v.dtype for v in tree_leaves([args, kwargs]) if isinstance(v, Tensor)}
    if not present & set(WIDE) or not present & set(WIDE.values()):
        return args, kwargs
    written = is_written(function)
    if written and isinstance(args[0], Tensor) and args[0].dtype in WIDE:
        return args, kwargs
    out = {"out": kwargs["out"]} if "out" in kwargs else {}
    args, kwargs = tree_map_only(Tensor, lambda v: v.to(WIDE[v.dtype]) if v.dtype in WIDE else v, (args, kwargs))
    return args, kwargs | out


def is_written(function: Callable) -> bool:
    """Whether the function changes its first argument in place."""
    name = getattr(function, "__name__", "")
    return name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
