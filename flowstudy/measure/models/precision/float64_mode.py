"""While a model runs in float64, what it makes besides its weights and its input is float64 too.

A model makes tensors of its own: states of zeros, positions, masks, tables.  Of torch's default dtype, they do not go
with float64 weights, or they round what is written into them.  A mode sees each of torch's functions that the calling
thread calls, from Python, and nothing else in the process: no default is set and no function is replaced.
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
    """What is made by default is float64, and complex128: torch.zeros, torch.arange(3) / 2.

    Args:
        casts: what the model asks to be coarser (`h.float()`, `dtype=torch.float32`) is float64 as well, and a coarser
            tensor that meets a float64 one is cast to it.  Else what the model casts on purpose stays what it is.
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
        """With the mode on, for the parts of the model that run in it, such as a checkpoint's: a mode is off while it
        handles a function, and torch hands it this one where tensors are given, not where their edges are."""
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
    """A real or complex tensor is among them: what is made of it has its dtype."""
    return any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in tree_leaves(values))


def asks(args: tuple, kwargs: dict) -> bool:
    """The call names a dtype."""
    return any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))


def made_wide(function: Callable, args: tuple, kwargs: dict, result: Tensor) -> Tensor:
    """The same made again, of no number in a coarser dtype: by its `dtype`, or of its integers as float64."""
    wide = WIDE[result.dtype]
    if function in DRAWS:
        return result.to(wide)
    if function in (torch.where, Tensor.where):   # a condition is no number
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
    """The arguments, coarser tensors cast where they meet wider ones; what is written to stays."""
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
    """The first argument is changed in place."""
    name = getattr(function, "__name__", "")
    return name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
