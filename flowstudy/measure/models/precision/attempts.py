"""A model is measured in float64; where it does not run in that, in the dtype that it has."""

import functools
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flowstudy.measure.models.outputs import with_tensors
from flowstudy.nets.blocks import runs_as
from flowstudy.refusal import RefusalError

from .float64_mode import Float64Mode

P, R = ParamSpec("P"), TypeVar("R")
KNOWN = ("torch.nn.modules.", "flowstudy.nets.")   # classes that make nothing of torch's default dtype
FINAL = (RefusalError, MemoryError, torch.OutOfMemoryError)   # of another dtype the answer is no other


class Thread(threading.local):
    """What the calling thread is measuring: `own` is whether in the model's own dtype."""

    own = False


thread = Thread()


def in_float64(measurement: Callable[P, R]) -> Callable[P, R]:
    """The measurement of a model, in the widest dtype in which it runs.

    First in float64, what the model casts on purpose (an RMS norm in float32) left as it is.  If that fails, as where
    `h.float()` meets float64 weights, with these casts to float64 too.  If that fails, as where a kernel has float32
    alone, on a copy in the model's own dtype.  What fails in that raises what it raises when the model runs by itself.
    """
    @functools.wraps(measurement)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        if thread.own:   # within a measurement that float64 did not do for
            return measurement(*args, **kwargs)
        looks_known = is_known([args, kwargs])
        for context in (nullcontext() if looks_known else Float64Mode(casts=False), Float64Mode(casts=True),
                        own_dtype()):
            try:
                with context:
                    return measurement(*args, **kwargs)
            except FINAL:
                raise
            except Exception as error:   # the model's own code ran: anything may be raised
                failed = error
        if is_models_own(failed):
            call = args[0] if args and isinstance(args[0], str) else measurement.__name__
            raise RefusalError(f"{call}: `x` must be a batch that the model takes, and the model raises "
                               f"{type(failed).__name__} on it: {failed}.{way_out_of_bytes([args, kwargs])}"
                               ) from failed
        raise failed

    return measured


def is_models_own(error: BaseException) -> bool:
    """Whether it was raised inside the model, as it was run on the batch."""
    return any(frame.f_code.co_name == "call_model" for frame, _ in traceback.walk_tb(error.__traceback__))


def way_out_of_bytes(arguments: object) -> str:
    held = any(isinstance(value, Tensor) and value.dtype == torch.uint8 for value in tree_leaves(arguments))
    return " Images of bytes become real numbers by x.float() / 255." if held else ""


@contextmanager
def own_dtype() -> Iterator[None]:
    before, thread.own = thread.own, True
    try:
        yield
    finally:
        thread.own = before


def is_known(arguments: object) -> bool:
    """All code of theirs that will run is torch's or flowstudy's own, and asks for no mode, which costs time."""
    values = tree_leaves(arguments)
    models = [value for value in values if isinstance(value, nn.Module)]
    others = any(callable(value) and not isinstance(value, nn.Module) for value in values)
    return bool(models) and not others and all(
        type(module).__module__.startswith(KNOWN) and runs_as(module, type(module))
        for model in models for module in model.modules())


def measured_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a model's tensor, in its copy: float64 or complex128, integers as they are; all as it is in its own dtype."""
    if thread.own:
        return dtype
    return torch.float64 if dtype.is_floating_point else torch.complex128 if dtype.is_complex else dtype


def measured_as(model: nn.Module, value: Tensor) -> Tensor:
    """A real or complex tensor of the caller's (an input, targets), in the dtype in which the model is measured.

    Made here: one that inference mode made cannot be differentiated through.
    """
    value = value.detach()
    if not thread.own or not value.is_floating_point():
        return value.to(measured_dtype(value.dtype), copy=True)
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return value.to(own or value.dtype, copy=True)


def measured_targets(model: nn.Module, y: object) -> object:
    """The tensors in the targets of a loss, in whatever structure it takes them."""
    return with_tensors(y, lambda _, t: measured_as(model, t))
