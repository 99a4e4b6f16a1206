"""How many threads torch computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """What runs inside gives the same bits whatever the number of cores, and does not wait for busy ones.

    On busy cores a second thread made LAPACK's eigenvalues 200 times slower (0.07 s became 15), and a step of a
    convolutional net 27 times.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
