"""Training steps as a CUDA graph: captured once, replayed without Python or launches in between."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowstudy.cuda_capture import captured
from flowstudy.train.batches import Batches

STEPS = 8  # in one replay


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
