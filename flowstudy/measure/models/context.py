"""The context of a measurement: its numbers do not depend on the caller's settings, and it leaves them unchanged."""

import functools
import random
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowstudy.refusal import RefusalError

P, R = ParamSpec("P"), TypeVar("R")


def in_own_context(measurement: Callable[P, R]) -> Callable[P, R]:
    """The measurement of a model, in a context of its own.

    Gradients are on, inference mode and autocast are off, and the caller's default device is that of the model's
    parameters while the model runs, and none else; other modes of the caller's are set aside.  All of these are
    settings of the calling thread.
    """
    @functools.wraps(measurement)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        model = next((value for value in args if isinstance(value, nn.Module)), kwargs.get("model"))
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(callers_modes_aside())
            for kind in {"cpu", "cuda", device_of(model).type}:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(several_backward_passes(measurement.__name__))
            return measurement(*args, **kwargs)

    return measured


@contextmanager
def several_backward_passes(call: str) -> Iterator[None]:
    """Refuse a model with a selective checkpoint, which allows only one backward pass through a forward pass."""
    try:
        yield
    except RuntimeError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        raised_in = frame.f_code
        if raised_in.co_name != "__torch_dispatch__" or raised_in.co_filename != torch.utils.checkpoint.__file__:
            raise
        raise RefusalError(f"{call}: `model` must allow several backward passes, got a selective checkpoint, which "
                           "allows one. Leave context_fn out of torch.utils.checkpoint.checkpoint while you measure: "
                           "the numbers are the same.") from error


class Caller(threading.local):
    """Per thread: whether the caller of the measurement has set a default device."""

    named_a_device = False


caller = Caller()


@contextmanager
def callers_modes_aside() -> Iterator[None]:
    """Switch off the caller's torch function modes, a default device among them, while the context lasts."""
    before, modes = caller.named_a_device, [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]
    caller.named_a_device = before or any(isinstance(mode, DeviceContext) for mode in modes)
    try:
        yield
    finally:
        caller.named_a_device = before
        for mode in reversed(modes):
            _push_mode(mode)


def modes_of_the_model(device: torch.device) -> AbstractContextManager:
    """A context in which new tensors are made on the model's device, if the caller has set a default device."""
    return device if caller.named_a_device else nullcontext()


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices of the model's parameters, each once, in their order."""
    return list(dict.fromkeys(p.device for p in model.parameters()))


def device_of(model: object) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU where there is none."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            if not isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                return tensor.device
    return torch.device("cpu")


class Draws(TorchDispatchMode):
    """Notices on which devices the calling thread draws random numbers; what other threads draw does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[torch.device] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in operation.tags:
            self.devices |= {drawn.device for drawn in tree_leaves(result) if isinstance(drawn, Tensor)}
        return result


def outside_torch() -> tuple:
    """The states of Python's and of numpy's global generators."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  the global state is what models draw from
    return random.getstate(), (kind, tuple(keys.tolist()), *rest)


class RandomState:
    """The global random state as it was when the measurement began.

    Every pass of one measurement draws from this state again, so that dropout has one mask in all of them, and
    afterwards the state is as it was: torch's, and that of Python's `random` and of numpy, by which some models skip
    layers.  Generators that the model draws nothing from are left alone: another thread may be drawing from them.

    Args:
        device: of the model's inputs; it may draw on others too.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        devices = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
        self.cuda = [torch.cuda.get_rng_state(i) for i in range(devices)]
        self.outside = outside_torch()
        self.drawn_on: set[torch.device] = set()
        self.drew_outside = False

    @property
    def drew_inside(self) -> bool:
        return bool(self.drawn_on)

    @property
    def drew(self) -> bool:
        return self.drew_inside or self.drew_outside

    def restore(self) -> None:
        """Put back the generators that the measurement has drawn from."""
        if self.drew_inside:
            torch.set_rng_state(self.cpu)
            for i, state in enumerate(self.cuda):
                if torch.device("cuda", i) in {self.device, *self.drawn_on}:
                    torch.cuda.set_rng_state(state, i)
        if self.drew_outside:
            python, (kind, keys, *rest) = self.outside
            random.setstate(python)
            np.random.set_state((kind, np.array(keys), *rest))  # noqa: NPY002  the global state is what is put back

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """A pass that draws what the first pass drew."""
        self.restore()
        try:
            with self.continued():
                yield
        finally:
            self.restore()

    @contextmanager
    def continued(self) -> Iterator[None]:
        """A pass that draws on from where the one before it stopped; `restore` then puts the state back."""
        before, draws = outside_torch(), Draws()
        try:
            with modes_of_the_model(self.device), draws:
                yield
        finally:
            self.drawn_on |= draws.devices
            self.drew_outside |= outside_torch() != before

    def repeated(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, drawing what the first pass drew whenever it is called."""
        def again(*args: P.args, **kwargs: P.kwargs) -> R:
            self.restore()
            try:
                with modes_of_the_model(self.device):
                    return function(*args, **kwargs)
            finally:
                self.restore()

        return again
