"""The tensors in a module's output, which may be any nesting of mappings, sequences and dataclasses."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from flowstudy.arguments import in_short
from flowstudy.refusal import RefusalError, RefusalTypeError


def numbers_in(value: object) -> Iterator[Tensor]:
    """The real and complex tensors in a structure, in order; indices and masks are left out."""
    return (tensor for tensor in tensors_in(value) if tensor.is_floating_point() or tensor.is_complex())


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in a structure of mappings, sequences and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):   # most often: asked at every operation, without the way through `entries_of`
        for part in value:
            yield from tensors_in(part)
    else:
        for _, part in entries_of(value):
            yield from tensors_in(part)


def entries_of(value: object) -> Iterator[tuple[object, object]]:
    """The entries of a mapping, a sequence or a dataclass, each with its key, its place or its name."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def with_tensors(value: object, change: Callable[[tuple, Tensor], Tensor], place: tuple = ()) -> object:
    """The same structure, of the same classes, with change(place, tensor) for each tensor."""
    if isinstance(value, Tensor):
        return change(place, value)
    parts = {key: with_tensors(part, change, (*place, key)) for key, part in entries_of(value)}
    if isinstance(value, Mapping):
        made = copy.copy(value)
        for key, part in parts.items():
            made[key] = part
        return made
    if isinstance(value, tuple | list):
        return type(value)(*parts.values()) if hasattr(value, "_fields") else type(value)(parts.values())
    return dataclasses.replace(value, **parts) if parts else value


def check_entry(call: str, entry: object) -> None:
    if entry is not None and not isinstance(entry, str | int):
        raise RefusalTypeError(f"{call}: `output` must be a key of the model's output, got {in_short(entry)}.")


def entry_of(call: str, output: object, entry: str | int | None) -> Tensor:
    """The tensor of a model's output that the caller means.

    Args:
        entry: its key, its place or its name.  None is the output itself where that is a tensor, the entry "logits"
            where there is one, else the only real or complex tensor in it.
    """
    if entry is None:
        if isinstance(output, Tensor):
            return output
        found = {key: part for key, part in entries_of(output) if isinstance(part, Tensor)}
        numbers = [found["logits"]] if "logits" in found else list(numbers_in(output))
        if len(numbers) != 1:
            raise RefusalTypeError(f"{call}: `model` must return one tensor, got {type(output).__name__}. "
                                   f"{way_to_one(output)}")
        return numbers[0]
    parts = dict(entries_of(output))
    if entry not in parts:
        raise RefusalError(f"{call}: `output` must be a key of the model's output, got {entry!r} of "
                           f"{type(output).__name__}. {way_to_one(output)}")
    if not isinstance(parts[entry], Tensor):
        raise RefusalTypeError(f"{call}: `output` must name a tensor of the model's output, got {entry!r}, a "
                               f"{type(parts[entry]).__name__}. {way_to_one(output)}")
    return parts[entry]


def way_to_one(output: object) -> str:
    """How one tensor of it can be named."""
    if isinstance(output, Tensor):
        return "It is one tensor: leave `output` out."
    tensors = [repr(key) for key, part in entries_of(output) if isinstance(part, Tensor)]
    if not tensors:
        return "Wrap it in a module that returns the tensor to measure."
    return f"Pass `output=`, one of its keys: {', '.join(tensors)}."


def is_inside_vmap(value: Tensor) -> bool:
    """One of many tensors that torch.func.vmap runs together: it has no place in the graph of the pass around it."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return True
        value = functorch.get_unwrapped(value)
    return False
