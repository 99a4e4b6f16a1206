"""The nets of a stack in training: on a CPU in chunks that the cache holds, a thread to a core; on a GPU as one."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flowstudy.data import Dataset
from flowstudy.train.batches import Batches, padded_size

from .any_module import StackedModules
from .compiled.compiler import chosen_backend
from .compiled.nets import CompiledFullyConnected
from .cuda_graph import GraphedSteps
from .ensemble import Stack
from .four_launches.there import gpu_backend
from .fully_connected import StackedFullyConnected, affine_names, compiled_form, trains_by_hand

CHUNK = 50           # nets: fewer share the cost of a call worse (25 take 6 % longer, 13 a third), more fill the memory
CHUNK_BYTES = 2**29  # of a chunk's buffers
COMPILED_CHUNK = 4   # nets, which share nothing: a core that is busy with other work then gets fewer of them
CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d


@runtime_checkable
class Nets(Protocol):
    """Nets of a chunk: their steps made one by one, or replayed."""

    x: Tensor

    def __len__(self) -> int: ...
    def set_rate(self, rate: Float[Tensor, " net"]) -> None: ...
    def run(self, batches: Batches) -> None: ...
    def loss(self) -> Float[Tensor, " net"]: ...
    def parameters(self) -> dict[str, Tensor]: ...
    def velocities(self) -> dict[str, Tensor]: ...


class Group:
    """Same-structure nets in training.

    Chunks do not interact, and what a net computes does not depend on its chunk, to the last bit on a CPU: every chunk
    is trained by one thread.  Those threads flush denormal numbers to zero (they cost deep plain nets up to 1.5 x);
    nobody measures in them.

    Args:
        nets: as they are at the start.
        momentum: of each.
        x, y: the training set, on the device of the nets.
        samples: a step's batch, padding included.
        backend: as a group that goes on has it; None: the first that these nets can have here.

    Attributes:
        backend: what computes the steps: "compiled" C or "torch" on a CPU, "triton" or a "cuda graph" on a GPU.
    """

    def __init__(self, nets: Stack, momentum: Float[Tensor, " net"], x: Tensor, y: Int[Tensor, " sample"],
                 samples: int, backend: str | None = None):
        self.backend = backend or backend_of(nets, x)
        self.build = builder(nets.template, x, y, samples, self.backend)
        # On a CPU grouped convolutions of 8 nets take 1.4 to 2.1 times as long as the nets one by one, of 4 nets 1.2 to
        # 1.5 times (benchmarks/training.py --conv; the MNIST net of width 16 and 32, batch 100, one thread).
        self.convolves = any(isinstance(module, CONVOLUTIONS) for module in nets.template.modules())
        self.device, self.on_gpu = x.device, x.device.type == "cuda"
        self.fill(nets, momentum)

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    def fill(self, nets: Stack, momentum: Float[Tensor, " net"], velocity: dict[str, Tensor] | None = None) -> None:
        """Take these nets in; without a velocity they start at rest."""
        self.nets, self.momentum, self.chunks = nets, momentum.to(self.device), []
        if not len(nets):
            return
        if self.on_gpu:
            parts = [slice(0, len(nets))]
        else:
            one = self.build(nets.part(slice(0, 1)), self.momentum[:1])
            most = COMPILED_CHUNK if self.backend == "compiled" else CHUNK
            largest = 1 if self.convolves else max(1, min(most, CHUNK_BYTES // one.bytes()))
            parts = chunk_slices(len(nets), largest, torch.get_num_threads())
        for part in parts:
            chunk = self.build(nets.part(part), self.momentum[part])
            if velocity is not None:
                own = chunk.velocities()
                for name, value in velocity.items():
                    own[name].copy_(value[part])
            self.chunks.append(GraphedSteps(chunk) if self.on_gpu else chunk)

    def keep(self, alive: Bool[Tensor, " net"]) -> None:
        """Drop the other nets: they cost nothing from here on."""
        nets, velocity, there = replace(self.nets, state=self.state()), self.velocity(), alive.to(self.device)
        self.fill(nets.only(alive), self.momentum[there], {name: value[there] for name, value in velocity.items()})

    def set_rate(self, rate: Float[Tensor, " net"]) -> None:
        for chunk, own in zip(self.chunks, rate.split([len(chunk) for chunk in self.chunks]), strict=True):
            chunk.set_rate(own)

    def run(self, batches: Batches) -> None:
        """A step for each batch."""
        if self.on_gpu:
            for chunk in self.chunks:
                chunk.run(batches)
        else:
            in_threads(lambda chunk: chunk.run(batches), self.chunks)

    def loss(self) -> Float[Tensor, " net"]:
        """Mean cross-entropy [nats per sample] over the training set, float64."""
        return torch.cat(in_threads(lambda chunk: chunk.loss(), self.chunks))

    def wait(self) -> None:
        """Until the steps are made: a GPU makes them while the host goes on."""
        if self.on_gpu:
            torch.cuda.current_stream(self.device).synchronize()  # others may train beside

    def state(self) -> dict[str, Tensor]:
        return joined([chunk.parameters() for chunk in self.chunks])

    def velocity(self) -> dict[str, Tensor]:
        return joined([chunk.velocities() for chunk in self.chunks])


def bytes_per_net(nets: Stack, data: Dataset, batch_size: int) -> int:
    """What each net of a stack takes while it trains: on a CPU the buffers of a step are those of a few chunks only."""
    samples = padded_size(min(batch_size, len(data.x_train)))
    one = nets.part(slice(0, 1))
    momentum = torch.zeros(1, device=data.x_train.device)
    weights = sum(value.nbytes for value in one.state.values())
    if data.x_train.device.type == "cpu":
        return 5 * weights  # with its velocity, and the copies that are taken in, handed out and checkpointed
    build = builder(nets.template, data.x_train, data.y_train, samples, backend_of(nets, data.x_train))
    return 3 * weights + build(one, momentum).bytes()


def backend_of(nets: Stack, x: Tensor) -> str:
    """The first that these nets can have: what trains them is the same wherever they are stacked."""
    of_nets = next(iter(nets.state.values())).dtype
    known = of_nets is x.dtype is torch.float32 and trains_by_hand(nets.template) and compiled_form(nets.template)
    if x.device.type == "cuda":
        return gpu_backend(nets.state) if known else "cuda graph"
    return chosen_backend() if known else "torch"


def builder(template: nn.Module, x: Tensor, y: Tensor, samples: int,
            backend: str) -> Callable[[Stack, Tensor], Nets]:
    """What makes chunks of such nets: of a stack of them, and the momentum of each."""
    if backend in ("compiled", "triton"):
        if backend == "triton":
            from .four_launches.nets import FourLaunches as Chunk  # Triton is not everywhere
        else:
            Chunk = CompiledFullyConnected
        form, names = compiled_form(template), affine_names(template)
        return lambda nets, momentum: Chunk(nets.template, form, names, nets.state, momentum, x, y, samples,
                                            nets.activations)
    if trains_by_hand(template):
        return lambda nets, momentum: StackedFullyConnected(nets.template, nets.state, momentum, x, y, samples,
                                                            nets.activations)
    return lambda nets, momentum: StackedModules(nets.template, nets.state, momentum, x, y, nets.activations)


def chunk_slices(nets: int, largest: int, workers: int) -> list[slice]:
    """As even as can be, and as many for one worker as for another."""
    count = min(nets, -(-nets // (largest * workers)) * workers)
    bounds = [nets * i // count for i in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(bounds)]


def in_threads(work: Callable[[Nets], object], chunks: Sequence[Nets]) -> list:
    """`work` of each chunk, in order, in as many threads as torch may use, each of them one core."""
    if len(chunks) == 0 or chunks[0].x.device.type != "cpu":
        return [work(chunk) for chunk in chunks]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(threads, len(chunks)), initializer=prepare_thread) as pool:
            return list(pool.map(work, chunks))
    finally:
        torch.set_num_threads(threads)  # what threads of others find as their default


def prepare_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

