"""Training steps as a CUDA graph: captured once, replayed without Python or launches in between."""

import torch

from flowstudy.train.batches import Batches

from .any_module import StackedModules
from .fully_connected import StackedFullyConnected

STEPS = 8    # in one replay
WARM_UP = 3  # steps before the capture, as torch asks


class GraphedSteps:
    """A stack of nets whose steps are replayed; the nets' own otherwise.

    Args:
        nets: their `step(index, weight)` runs on the device alone: no sizes, branches or copies that the host decides.
    """

    def __init__(self, nets: StackedFullyConnected | StackedModules):
        self.nets = nets
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Batches]] = {}

    def __len__(self) -> int:
        return len(self.nets)

    def __getattr__(self, name: str):
        return getattr(self.nets, name)

    def run(self, batches: Batches) -> None:
        """A step for each batch."""
        batches = Batches(*(part.to(self.nets.x.device, non_blocking=True) for part in batches))
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
        held = {**self.nets.parameters(), **{f"v {k}": v for k, v in self.nets.velocities().items()}}
        before = {name: value.clone() for name, value in held.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.nets.step(static.index[0], static.weight[0])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for index, weight in zip(*static, strict=True):
                self.nets.step(index, weight)
        with torch.no_grad():
            for name, value in held.items():
                value.copy_(before[name])
        self.graphs[len(static)] = graph, static
        return graph, static
