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
KNOWN = ("torch.nn.modules.", "flowstudy.nets.")   # modules whose classes make no tensors of torch's default dtype
FINAL = (RefusalError, MemoryError, torch.OutOfMemoryError)   # errors that another dtype would not avoid


class Thread(threading.local):
    """Per thread: `own` says whether the measurement under way uses the model's own dtype."""

    own = False


thread = Thread()


def in_float64(measurement: Callable[P, R]) -> Callable[P, R]:
    """Decorate a measurement so that it runs in the widest dtype in which the model runs.

    Three attempts are made.  The first is in float64, with the model's explicit casts (an RMS norm in float32) left as
    they are.  It fails where `h.float()` meets float64 weights; the second attempt turns these casts into float64 too.
    It fails where a kernel supports float32 only; the third attempt uses a copy in the model's own dtype.  An error in
    that one is the error that the model raises by itself.
    """
    @functools.wraps(measurement)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        if thread.own:   # inside of a measurement whose attempts in float64 have failed
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
    """Whether all modules are torch's or flowstudy's own: these need no Float64Mode, which costs time."""
    values = tree_leaves(arguments)
    models = [value for value in values if isinstance(value, nn.Module)]
    others = any(callable(value) and not isinstance(value, nn.Module) for value in values)
    return bool(models) and not others and all(
        type(module).__module__.startswith(KNOWN) and runs_as(module, type(module))
        for model in models for module in model.modules())


def measured_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in the copy of a model's tensor of this dtype.

    It is float64 or complex128, and the same for integers; in a measurement in the model's own dtype all stay the same.
    """
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
