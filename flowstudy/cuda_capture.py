"""Work on a GPU recorded as a CUDA graph, which is replayed without Python or launches in between."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

WARM_UP = 3  # calls before the capture, as torch asks
CAPTURES = threading.RLock()  # held by what a capture in another thread must not meet


def captured(warm_up: Callable[[], object], work: Callable[[], object], device: torch.device, *,
             small: bool = False) -> torch.cuda.CUDAGraph:
    """The work as a graph, after a few calls of `warm_up`; whatever these change is the caller's to put back.

    One thread captures at a time, and others may use this GPU meanwhile.

    Args:
        small: the work needs little memory, and has run before: one call of `warm_up` will do, and the memory that
            torch keeps for later need not be freed first, for which all of the GPU is waited for.
    """
    with CAPTURES, torch.cuda.device(device):
        current, stream, graph = torch.cuda.current_stream(), capture_stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # the graph's own context stays open if the capture raises
            for _ in range(1 if small else WARM_UP):
                warm_up()
            with (begun_and_ended(graph) if small
                  else torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")):
                work()
        current.wait_stream(stream)
    return graph


@contextmanager
def begun_and_ended(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        yield
    finally:
        graph.capture_end()


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device, for all captures: torch's own for them is of the device that captures first.

    Of high priority: those of ordinary priority are 32 in all, handed out in turns, so another thread could get it too.
    """
    return torch.cuda.Stream(device, priority=-1)
