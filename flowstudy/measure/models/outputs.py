"""What a module puts out, whatever structure it puts it in."""

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def numbers_in(value: object) -> Iterator[Tensor]:
    """The real and complex tensors in a structure, in order; indices and masks are left out."""
    return (tensor for tensor in tensors_in(value) if tensor.is_floating_point() or tensor.is_complex())


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in a structure of mappings, sequences and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def is_inside_vmap(value: Tensor) -> bool:
    """One of many tensors that torch.func.vmap runs together: it has no place in the graph of the pass around it."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return True
        value = functorch.get_unwrapped(value)
    return False
