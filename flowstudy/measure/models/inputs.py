"""A model's inputs: one tensor, or several tensors in the positional and keyword arguments of the model."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from flowstudy.refusal import RefusalError, RefusalTypeError

from .context import devices_of
from .outputs import entries_of, with_tensors
from .precision.attempts import measured_as

# What the public functions take: model(x) of a tensor, model(*x) of a tuple or list, model(**x) of a mapping.
Shown = Tensor | tuple[object, ...] | list[object] | Mapping[str, object] | object
Name = str | int | tuple   # of a tensor: its key or place; of one inside another structure, the keys on the way to it


@dataclass(frozen=True)
class Inputs:
    """A batch: model(*args, **kwargs).

    Every tensor whose first axis has the batch's length has an entry for each sample; all else belongs to all samples.

    Attributes:
        args, kwargs: tensors, structures of tensors, and what else the model takes.
    """

    args: tuple
    kwargs: dict

    @classmethod
    def of(cls, x: Shown) -> "Inputs":
        """The batch in the form a user passes it; a named tuple (a packed sequence) or a dataclass is one argument."""
        if isinstance(x, Inputs):
            return x
        if isinstance(x, Mapping):
            return cls((), dict(x))
        return cls(tuple(x), {}) if type(x) in (tuple, list) else cls((x,), {})

    def call_model(self, model: Callable[..., object]) -> object:
        return model(*self.args, **self.kwargs)

    @cached_property
    def tensors(self) -> dict[Name, Tensor]:
        """All tensors in the arguments by name, in order."""
        return dict(named_tensors((self.args, self.kwargs)))

    @cached_property
    def differentiable(self) -> dict[Name, Tensor]:
        """The tensors to differentiate: real and complex ones, except sparse ones and masks that hold -inf."""
        return {name: t for name, t in self.tensors.items()
                if is_number(t) and t.layout == torch.strided and not t.is_nested and not is_mask(t)}

    def __len__(self) -> int:
        """Number of samples: the length of the first axis of the first tensor that has axes."""
        return next((len(t) for t in self.tensors.values() if t.ndim), 1)

    @property
    def device(self) -> torch.device:
        """The accelerator if any tensor is on one, since lengths are often kept on the CPU; else the CPU."""
        return max((t.device for t in self.tensors.values()), key=lambda device: device.type != "cpu")

    def mapped(self, change: Callable[[Name, Tensor], Tensor]) -> "Inputs":
        """The same arguments with each tensor replaced by change(name, tensor)."""
        return Inputs(*with_tensors((self.args, self.kwargs), lambda place, t: change(name_at(place), t)))

    def __getitem__(self, index: slice | Tensor) -> "Inputs":
        """The batch of these samples only."""
        samples = len(self)
        return self.mapped(lambda _, t: t[index] if t.ndim and len(t) == samples else t)

    def split(self, size: int) -> list["Inputs"]:
        return [self[i:i + size] for i in range(0, len(self), size)]

    def measured(self, model: nn.Module) -> "Inputs":
        """The same batch as copies in the dtype in which the model is measured."""
        return self.mapped(lambda _, t: measured_as(model, t))

    def to(self, real: torch.dtype) -> "Inputs":
        """The same batch as copies, real tensors in this dtype, complex ones in the complex dtype of the same
        precision, and indices and boolean masks as they are."""
        return self.mapped(lambda _, t: in_dtype(t, real))

    def with_leaf(self) -> tuple[Tensor | None, "Inputs"]:
        """A leaf that holds all numbers that ask for a gradient, and the inputs made of it, which may be written to.

        Of one tensor it has the shape, of several it is flat; None where there are none.
        """
        own = self.differentiable
        leaf = None
        if len(own) == 1:
            leaf = next(iter(own.values())).detach().clone().requires_grad_()
            made = dict.fromkeys(own, leaf)
        else:
            flat = [in_reals(t).flatten().to(self.device) for t in own.values()]
            leaf = torch.cat(flat).requires_grad_() if own else None
            parts = leaf.split([len(part) for part in flat]) if own else ()
            made = {name: of_reals(part.to(t.device), t) for (name, t), part in zip(own.items(), parts, strict=True)}
        return leaf, self.mapped(lambda name, t: made.get(name, t).clone())


# --- tensors by their names ------------------------------------------------------------------------------------------


def named_tensors(value: object, place: tuple = ()) -> Iterator[tuple[Name, Tensor]]:
    """All tensors in a pair (args, kwargs), in order."""
    if isinstance(value, Tensor):
        yield name_at(place), value
    for key, part in entries_of(value):
        yield from named_tensors(part, (*place, key))


def name_at(place: tuple) -> Name:
    """A tensor's name, from the keys on the way to it from (args, kwargs)."""
    return place[1] if len(place) == 2 else place[1:]


def is_number(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def is_mask(t: Tensor) -> bool:
    """Whether the tensor is a mask to be added to attention scores: it holds -inf."""
    return t.is_floating_point() and bool((t == -torch.inf).any())


def in_dtype(t: Tensor, real: torch.dtype) -> Tensor:
    """A copy: a tensor that inference mode made cannot be differentiated."""
    dtype = real if t.is_floating_point() else real.to_complex() if t.is_complex() else t.dtype
    return t.detach().to(dtype).clone()


def in_reals(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def of_reals(part: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(part.view(*like.shape, 2)) if like.is_complex() else part.view(like.shape)


# --- checks at the public edge ---------------------------------------------------------------------------------------


def check_input(call: str, model: nn.Module, x: Shown) -> Inputs:
    """The batch in the dtype in which the model is measured, or the error that says what is wrong with it."""
    return check_batch(call, model, x).measured(model)


def check_batch(call: str, model: nn.Module, x: Shown) -> Inputs:
    """The batch as it is, or the error that says what is wrong with it."""
    inputs = Inputs.of(x)
    alone = isinstance(x, Tensor)
    if not inputs.tensors or not (alone or isinstance(x, Inputs | Mapping | tuple | list)):
        held = "".join(f" of {type(part).__name__}" for _, part in list(entries_of(x))[:1])
        raise RefusalTypeError(f"{call}: `x` must be a tensor of inputs, got {type(x).__name__}{held}. Use "
                               "torch.as_tensor; several go in a tuple, for model(*x), or in a mapping, for "
                               "model(**x); one of a class of its own becomes a mapping or a dataclass, in a tuple.")
    if alone and (x.ndim < 1 or x.numel() == 0 or (x.ndim == 1 and is_number(x))):
        raise RefusalError(f"{call}: `x` must be a batch of at least one sample, got shape {tuple(x.shape)}. "
                           "Its first axis counts samples: for one sample pass x.unsqueeze(0), for samples of one "
                           "number each (x,).")
    if not len(inputs):
        shapes = {name: tuple(t.shape) for name, t in inputs.tensors.items()}
        raise RefusalError(f"{call}: `x` must be a batch of at least one sample, got {shapes}. First axes count "
                           "samples.")
    devices = devices_of(model) or [inputs.device]
    for name, t in inputs.tensors.items():
        check_tensor(call, "x" if alone else f"x[{name!r}]", t, devices, masks=not alone)
    check_arguments(call, model, inputs)
    features = getattr(model, "in_features", None)
    if alone and is_number(x) and isinstance(features, int) and x.shape[-1] != features:
        raise RefusalError(f"{call}: `x` must have {features} features in its last axis, got shape {tuple(x.shape)}. "
                           "Flatten images with x.flatten(1).")
    return inputs


def check_samples_apart(call: str, inputs: Inputs) -> None:
    """Refuse to pick samples from a batch with a tensor about pairs of samples, such as a graph of the batch."""
    for name, t in inputs.tensors.items():
        if len(inputs.tensors) > 1 and t.ndim == 2 and t.shape == (len(inputs), len(inputs)) and len(inputs) > 1:
            raise RefusalError(f"{call}: `x` must have samples that can be picked, got x[{name!r}] of shape "
                               f"{tuple(t.shape)}, a row and a column for each sample (a graph of the batch?). Give "
                               "each sample its own, or make it an attribute of the model; if it is one row of "
                               "features for each sample, leave a sample out.")


def check_arguments(call: str, model: nn.Module, inputs: Inputs) -> None:
    """Refuse inputs that do not fit the signature of the model's forward; not checked where hooks may change them."""
    if model._forward_pre_hooks or type(model).__call__ is not nn.Module.__call__:
        return
    try:
        inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except ValueError:   # a forward without a signature
        return
    except TypeError as error:
        raise RefusalTypeError(f"{call}: `x` must be what {type(model).__name__} takes, model(*x) of a tuple or a list "
                               f"and model(**x) of a mapping, got {error}. A list that is one input goes into a tuple, "
                               "([a, b],).") from None


def check_tensor(call: str, argument: str, t: Tensor, devices: list[torch.device], *, masks: bool) -> None:
    """Refuse a tensor on no device of the model's, or with nan or infinities; -inf is allowed if `masks`."""
    if t.device not in devices and not (t.device.type == "cpu" and masks and not is_number(t)):
        raise RefusalError(f"{call}: `{argument}` must be on the model's device {' or '.join(map(str, devices))}, got "
                           f"{t.device}. Pass {argument}.to({str(devices[0])!r}).")
    if not is_number(t) or t.is_nested:
        return
    held = t if t.layout == torch.strided else t.to_dense()
    wild = ~held.isfinite() & ~(held == -torch.inf) if masks and not t.is_complex() else ~held.isfinite()
    if wild.any():
        raise RefusalError(f"{call}: `{argument}` must be finite, got {int(wild.sum())} NaN or infinite entries.")


def check_same_device(call: str, y: Tensor, device: torch.device) -> None:
    """Refuse targets on another device than the model's outputs."""
    if y.device != device:
        raise RefusalError(f"{call}: `y` must be on the model's device {device}, got {y.device}. "
                           f"Pass y.to({str(device)!r}).")
