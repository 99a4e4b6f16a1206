"""Streams, events and graphs of the emulated devices.

Operations run when they are called, so a stream has nothing to wait for; it matters which one is current, since a graph
records what runs on the stream that it captures.
"""

import itertools
import threading
import warnings
from collections.abc import Callable

import emulated_device
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .log import LOG


def index_of(device: object) -> int:
    """None, and "cuda" without a number, are the current device."""
    if device is None or (isinstance(device, int) and device < 0):
        return emulated_device.current_device()
    if isinstance(device, int):
        return device
    device = torch.device(device)
    return emulated_device.current_device() if device.index is None else device.index


POOL = 32  # streams of ordinary priority that torch has for a device, and hands out in turns
POOLED: dict[tuple[int, int], "Stream"] = {}  # by device and turn
CAPTURED: set["Stream"] = set()  # now, by whatever thread
HOST = {"may wait": True}  # torch.cuda.set_sync_debug_mode


class Stream:
    numbers = itertools.count()

    def __new__(cls, device: object = None, priority: int = 0):
        new = super().__new__(cls)
        new.device_index, new.number, new.graph = index_of(device), next(Stream.numbers), None
        return new if priority else POOLED.setdefault((new.device_index, new.number % POOL), new)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.device_index)

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: "Event") -> None: ...

    def synchronize(self) -> None:
        wait("stream")

    def query(self) -> bool:
        return True

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event()


class Event:
    """It has always happened already."""

    def __init__(self, *_: object, **__: object): ...

    def record(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        wait("event")

    def wait(self, stream: Stream | None = None) -> None: ...

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


class CurrentStreams:
    """By device, each thread's own; autograd's threads have those of the main thread, which is all that tests need."""

    def __init__(self) -> None:
        self.of_threads: dict[int, list[Stream]] = {}

    def of_this_thread(self) -> list[Stream]:
        thread = threading.current_thread()
        if isinstance(thread, threading._DummyThread):  # not of Python's making
            thread = threading.main_thread()
        return self.of_threads.setdefault(thread.ident, list(default_streams))

    def __getitem__(self, index: int) -> Stream:
        return self.of_this_thread()[index]

    def __setitem__(self, index: int, stream: Stream) -> None:
        self.of_this_thread()[index] = stream

    def __len__(self) -> int:
        return len(default_streams)


default_streams: list[Stream] = []
current_streams = CurrentStreams()


def make_default_streams(devices: int) -> None:
    default_streams[:] = [Stream(i, -1) for i in range(devices)]
    current_streams.of_threads.clear()


def current_stream(device: object = None) -> Stream:
    return current_streams[index_of(device)]


def default_stream(device: object = None) -> Stream:
    return default_streams[index_of(device)]


class stream:
    """The stream is its device's current one within the block, and the device is current."""

    def __init__(self, stream: Stream | None):
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.device = emulated_device.exchange_device(self.stream.device_index)
            self.before = current_streams[self.stream.device_index]
            current_streams[self.stream.device_index] = self.stream

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            current_streams[self.stream.device_index] = self.before
            emulated_device.exchange_device(self.device)


class device:
    """The device is current within the block."""

    def __init__(self, device: object):
        self.index = index_of(device)

    def __enter__(self) -> None:
        self.before = emulated_device.exchange_device(self.index)

    def __exit__(self, *_: object) -> None:
        emulated_device.exchange_device(self.before)


# --- graphs ----------------------------------------------------------------------------------------------------------


def capturing() -> "CUDAGraph | None":
    """The graph that this thread captures, on any device."""
    return next((stream.graph for stream in current_streams if stream.graph is not None), None)


def wait(why: str) -> None:
    forbid_in_capture(why)
    if not HOST["may wait"]:
        raise RuntimeError(f"called a synchronizing CUDA operation ({why})")
    LOG.waits[why] += 1


def of_the_whole_device(what: str) -> None:
    """As CUDA and torch's allocator forbid it while any of its streams is captured, in another thread too."""
    if CAPTURED:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


def synchronize(device: object = None) -> None:
    wait("device")
    of_the_whole_device("device")


def set_sync_debug_mode(mode: str | int) -> None:
    HOST["may wait"] = mode not in ("error", 2)


def get_sync_debug_mode() -> int:
    return 0 if HOST["may wait"] else 2


def forbid_in_capture(what: str) -> None:
    graph = capturing()
    if graph is not None:
        graph.broken = True
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


class CUDAGraph:
    """Operations on a stream, to be made again on the same memory.

    They are made while they are recorded, as the Python code between them needs shapes; what they wrote to that the
    graph has not made itself is put back at the end, for on a real device nothing has run yet.
    """

    def __init__(self, keep_graph: bool = False):
        self.steps: list[tuple[Callable, tuple, dict, list[tuple[int, Tensor]]]] | None = None

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        self.stream = current_stream()
        if self.stream in default_streams:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        self.stream.graph, self.broken = self, False
        CAPTURED.add(self.stream)
        self.steps, self.before, self.own = [], {}, set()

    def capture_end(self) -> None:
        self.stream.graph = None
        CAPTURED.discard(self.stream)
        for whole, content in self.before.values():
            whole.copy_(content)
        if self.broken:
            self.steps = None
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        if not self.steps:
            warnings.warn("The CUDA Graph is empty. This usually means that the graph was attempted to be captured on "
                          "wrong device or stream.", stacklevel=2)

    def replay(self) -> None:
        if self.steps is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        with torch.no_grad():
            for operation, args, kwargs, made in self.steps:
                results = [leaf for leaf in tree_leaves(operation(*args, **kwargs)) if isinstance(leaf, Tensor)]
                for position, kept in made:
                    kept.copy_(results[position])
        LOG.kernels["graph replay"] += 1

    def pool(self) -> tuple[int, int]:
        return (0, 0)

    def reset(self) -> None:
        self.steps = None

    # --- called by operations.py -------------------------------------------------------------------------------------

    def about_to_write(self, host: Tensor) -> None:
        address = emulated_device.address(host)
        if address not in self.before and address not in self.own:
            entries = host.untyped_storage().nbytes() // host.element_size()
            whole = host.detach().as_strided((entries,), (1,), 0)
            self.before[address] = whole, whole.clone()

    def record(self, operation: Callable, args: tuple, kwargs: dict, made: list[tuple[int, Tensor]]) -> None:
        self.steps.append((operation, args, kwargs, made))
        self.own.update(emulated_device.address(tensor) for _, tensor in made)


class graph:
    """As torch's: where `capture_end` raises, its stream stays the current one."""

    default_capture_stream: Stream | None = None

    def __init__(self, cuda_graph: CUDAGraph, pool: object = None, stream: Stream | None = None,
                 capture_error_mode: str = "global"):
        if graph.default_capture_stream is None:
            graph.default_capture_stream = Stream(priority=-1)  # of the device that is current at the first capture
        self.cuda_graph, self.context = cuda_graph, globals()["stream"](stream or graph.default_capture_stream)

    def __enter__(self) -> None:
        wait("graph")
        self.context.__enter__()
        self.cuda_graph.capture_begin()

    def __exit__(self, *error: object) -> None:
        self.cuda_graph.capture_end()
        self.context.__exit__(*error)
