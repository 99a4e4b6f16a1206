"""Work on a GPU recorded as a CUDA graph, which is replayed without Python or launches in between."""

import functools
import threading
from collections.abc import Callable

import torch

WARM_UP = 3  # calls before the capture of what has not run yet, as torch asks
CAPTURES = threading.RLock()  # held by what a capture in another thread must not meet


def captured(warm_up: Callable[[], object], work: Callable[[], object], device: torch.device,
             calls: int = WARM_UP) -> torch.cuda.CUDAGraph:
    """The work as a graph, after a few calls of `warm_up`; whatever these change is the caller's to put back.

    One thread captures at a time, and others may use this GPU meanwhile.
    """
    with CAPTURES, torch.cuda.device(device):
        current, stream, graph = torch.cuda.current_stream(), capture_stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # the graph's own context stays open if the capture raises
            for _ in range(calls):
                warm_up()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                work()
        current.wait_stream(stream)
    return graph


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device, for all captures: torch's own for them is of the device that captures first.

    Of high priority: those of ordinary priority are 32 in all, handed out in turns, so another thread could get it too.
    """
    return torch.cuda.Stream(device, priority=-1)
