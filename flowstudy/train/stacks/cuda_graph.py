"""Training steps as a CUDA graph: captured once, replayed without Python or launches in between."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowstudy.train.batches import Batches

STEPS = 8    # in one replay
WARM_UP = 3  # steps before the capture, as torch asks


@runtime_checkable
class Steps(Protocol):
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

    def __init__(self, nets: Steps):
        self.nets, self.x, self.stream = nets, nets.x, torch.cuda.Stream(nets.x.device)
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
        run_side_by_side([self], batches)

    def replays(self, batches: Batches) -> Iterator[None]:
        """The steps in turn, on this stack's own stream; the batches are on the device."""
        first = 0
        while first < len(batches):
            steps = STEPS if first + STEPS <= len(batches) else 1
            with torch.cuda.stream(self.stream):
                graph, static = self.graphs.get(steps) or self.capture(batches.part(first, first + steps))
                static.index.copy_(batches.index[first:first + steps])
                static.weight.copy_(batches.weight[first:first + steps])
                graph.replay()
            first += steps
            yield

    def capture(self, like: Batches) -> tuple[torch.cuda.CUDAGraph, Batches]:
        """Record the steps; the nets are afterwards as they were."""
        static = Batches(*(part.clone() for part in like))
        held = {**self.parameters(), **{f"v {k}": v for k, v in self.velocities().items()}}
        before = {name: value.clone() for name, value in held.items()}
        current, stream, graph = torch.cuda.current_stream(), capture_stream(self.x.device), torch.cuda.CUDAGraph()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # the graph's own context stays open if the capture raises
            for _ in range(WARM_UP):
                self.nets.step(static.index[0], static.weight[0])
            with torch.cuda.graph(graph, stream=stream):
                for index, weight in zip(*static, strict=True):
                    self.nets.step(index, weight)
        current.wait_stream(stream)
        with torch.no_grad():
            for name, value in held.items():
                value.copy_(before[name])
        self.graphs[len(static)] = graph, static
        return graph, static


def run_side_by_side(stacks: Sequence[GraphedSteps], batches: Batches) -> None:
    """A step of each stack for each batch: what one computes hides where another waits for the memory."""
    device = stacks[0].x.device
    with torch.cuda.device(device):  # whose streams capture and replay
        batches = Batches(*(part.to(device, non_blocking=True) for part in batches))
        current = torch.cuda.current_stream()
        for stack in stacks:
            stack.stream.wait_stream(current)
        for _ in itertools.zip_longest(*(stack.replays(batches) for stack in stacks)):
            pass
        for stack in stacks:
            current.wait_stream(stack.stream)


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device, for all captures: torch's own for them is of the device that captures first."""
    return torch.cuda.Stream(device)
