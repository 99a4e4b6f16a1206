"""The list of listeners that are told of every optimizer's steps.

torch keeps global optimizer hooks in a dict that every step iterates over; if a thread changes it meanwhile, another
thread's step fails.  So one pair of hooks is registered once and never removed.  It calls the listeners of a tuple kept
here, which is replaced as a whole and never changed.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Listener(NamedTuple):
    """The functions called before and after each step, with the arguments of torch's own hooks."""

    before: Callable[[Optimizer, tuple, dict], None]
    after: Callable[[Optimizer, tuple, dict], None]


class Steps:
    """The listeners of this process."""

    def __init__(self):
        self.listeners: tuple[Listener, ...] = ()
        self.lock, self.is_hooked = threading.Lock(), False

    def tell(self, listener: Listener) -> None:
        with self.lock:
            if not self.is_hooked:
                register_optimizer_step_pre_hook(self.before)
                register_optimizer_step_post_hook(self.after)
                self.is_hooked = True
            self.listeners = (*self.listeners, listener)

    def tell_no_more(self, listener: Listener) -> None:
        with self.lock:
            self.listeners = tuple(one for one in self.listeners if one is not listener)

    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for listener in self.listeners:
            listener.before(optimizer, args, kwargs)

    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for listener in self.listeners:
            listener.after(optimizer, args, kwargs)


STEPS = Steps()
