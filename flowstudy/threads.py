"""The number of threads that torch uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: results do not depend on the number of cores, and busy cores do not slow them down.

    On busy cores a second thread made LAPACK's eigenvalues 200 times slower (0.07 s became 15), and a step of a
    convolutional net 27 times.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
