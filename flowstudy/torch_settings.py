"""Settings that torch keeps for the whole process, changed while a block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: results do not depend on the number of cores, and busy cores do not slow them down.

    On busy cores a second thread made LAPACK's eigenvalues 200 times slower (0.07 s became 15), and a step of a
    convolutional net 27 times.
    """
    with so_many_threads(1):
        yield


@contextmanager
def so_many_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class quiet_fallback:
    """Silence vmap's warning that it loops over an operation that it has no batching rule for."""

    def __enter__(self) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)


class rules_only:
    """Make vmap raise an error at an operation without a batching rule, since looping over it would gain nothing."""

    def __enter__(self) -> None:
        self.before = torch._C._functorch._is_vmap_fallback_enabled()
        torch._C._functorch._set_vmap_fallback_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._functorch._set_vmap_fallback_enabled(self.before)
