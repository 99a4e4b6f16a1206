"""Training steps as a CUDA graph: captured once, replayed without Python or launches in between."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowstudy.train.batches import Batches

STEPS = 8    # in one replay
WARM_UP = 3  # steps before the capture, as torch asks
CAPTURES = threading.RLock()  # held by what a capture in another thread must not meet


@runtime_checkable
class StepsOnDevice(Protocol):
    """Nets whose step runs on the device alone: no sizes, branches or copies that the host decides."""

    x: Tensor

    def __len__(self) -> int: ...
    def set_rate(self, rate: Float[Tensor, " net"]) -> None: ...
    def step(self, index: Int[Tensor, " sample"], weight: Float[Tensor, " sample"]) -> None: ...
    def loss(self) -> Float[Tensor, " net"]: ...
    def parameters(self) -> dict[str, Tensor]: ...
    def velocities(self) -> dict[str, Tensor]: ...


class GraphedSteps:
    """A stack of nets whose steps are replayed; the nets' own otherwise."""

    def __init__(self, nets: StepsOnDevice):
        self.nets, self.x = nets, nets.x
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Batches]] = {}

    def __len__(self) -> int:
        return len(self.nets)

    def set_rate(self, rate: Float[Tensor, " net"]) -> None:
        self.nets.set_rate(rate)

    def loss(self) -> Float[Tensor, " net"]:
        return self.nets.loss()

    def parameters(self) -> dict[str, Tensor]:
        return self.nets.parameters()

    def velocities(self) -> dict[str, Tensor]:
        return self.nets.velocities()

    def run(self, batches: Batches) -> None:
        """A step for each batch."""
        with torch.cuda.device(self.x.device):  # whose current stream captures and replays
            batches = Batches(*(part.to(self.x.device, non_blocking=True) for part in batches))
            first = 0
            while first < len(batches):
                steps = STEPS if first + STEPS <= len(batches) else 1
                graph, static = self.graphs.get(steps) or self.capture(batches.part(first, first + steps))
                static.index.copy_(batches.index[first:first + steps])
                static.weight.copy_(batches.weight[first:first + steps])
                graph.replay()
                first += steps

    def capture(self, like: Batches) -> tuple[torch.cuda.CUDAGraph, Batches]:
        """Record the steps; the nets are afterwards as they were."""
        static = Batches(*(part.clone() for part in like))
        held = [*self.parameters().values(), *self.velocities().values()]
        with kept_as_they_are(held):
            graph = captured(lambda: self.nets.step(static.index[0], static.weight[0]),
                             lambda: [self.nets.step(index, weight) for index, weight in zip(*static, strict=True)],
                             self.x.device)
        self.graphs[len(static)] = graph, static
        return graph, static


@contextmanager
def kept_as_they_are(values: Sequence[Tensor]) -> Iterator[None]:
    """What the block writes into these tensors is undone."""
    before = [value.detach().clone() for value in values]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in zip(values, before, strict=True):
                value.copy_(old)


def captured(warm_up: Callable[[], object], steps: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """The steps as a graph, after a few calls of `warm_up`; whatever these change is the caller's to put back.

    One thread captures at a time, and others may train on this GPU meanwhile.
    """
    with CAPTURES, torch.cuda.device(device):
        current, stream, graph = torch.cuda.current_stream(), capture_stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # the graph's own context stays open if the capture raises
            for _ in range(WARM_UP):
                warm_up()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                steps()
        current.wait_stream(stream)
    return graph


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device, for all captures: torch's own for them is of the device that captures first.

    Of high priority: those of ordinary priority are 32 in all, handed out in turns, so another thread could get it too.
    """
    return torch.cuda.Stream(device, priority=-1)
