"""A stack of fully connected nets on a GPU whose steps are four launches of Triton's.

Its numbers are those of StackedFullyConnected, to rounding: the order of sums differs, and products split each float32
factor into three of 10 bits, which keeps float32's accuracy ("tf32x3"; "tf32" where training asks for it).
"""

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowstudy.cuda_capture import CAPTURES
from flowstudy.train.stacks.compiled.nets import filled

from . import kernels
from .functions import BITS, KEEP_INPUT
from .kernels import JOINS

ROW = 4              # rows of weights begin at multiples of 16 bytes
LEAST = 16           # rows or columns of a product of a GPU's matrix unit
FEATURES = 64        # of the input, at a time


class Launch(NamedTuple):
    """How a kernel is compiled: its warps, how many loads ahead it runs, and the samples of a program."""

    warps: int
    stages: int
    samples: int = 32


# As measured on an H100 (benchmarks/results/four_launches.md).
DEEP, SHALLOW, WIDE = Launch(4, 3), Launch(4, 1), Launch(8, 1)
OF_DEEP = 2**17  # bytes of a processor's shared memory that the backward pass takes with DEEP


class FourLaunches:
    """Same-structure nets, float32 on a GPU, with their velocities and the buffers of a step of `samples` samples.

    Args:
        template: a module of the nets' structure: `input`, `blocks`, `readout`.
        join: how a block's output is made of its input and H: one of JOINS.
        names: of the affine maps, from the input to the read-out.
        state: parameters by name, (net, ...) each; copied.
        momentum: (net,).
        x, y: the training set that steps take their samples from.
        samples: a step's batch, padding included.
        activations: each net's; none: all have the template's.
    """

    def __init__(self, template: nn.Module, join: str, names: list[str], state: dict[str, Tensor],
                 momentum: Float[Tensor, " net"], x: Float[Tensor, "sample feature"], y: Int[Tensor, " sample"],
                 samples: int, activations: tuple[str, ...] = ()):
        self.x, self.y, self.labels = x.contiguous(), y, y.int()
        self.names, self.samples, self.layers = names, samples, len(names) - 2
        first = state["readout.weight"]
        nets, classes, width = first.shape
        self.momentum = momentum.to(first)
        self.scale = torch.zeros_like(self.momentum)
        own = activations or (template.input.activation,) * nets
        self.kinds = torch.tensor([BITS[name] for name in own], dtype=torch.int32, device=x.device)
        maps = 2 if join == "highway" else 1
        sizes = {"in": (width, x.shape[1]), "blocks": (self.layers, maps * width, width), "out": (classes, width)}
        self.weights, self.moving = ({part: first.new_zeros(nets, *size[:-1], filled(size[-1], ROW))
                                      for part, size in sizes.items()} for _ in range(2))
        self.biases, self.moving_biases = ({part: first.new_zeros(nets, *size[:-1]) for part, size in sizes.items()}
                                           for _ in range(2))
        for name, view in self.parameters().items():
            view.copy_(state[name].detach())
        self.saved = first.new_empty(nets, self.layers + 1, 1 + maps, width, samples)
        self.deltas = first.new_empty(nets, classes, samples)
        units, rest = two_tiles(width, maps)
        self.forward, self.backward, self.updates = launches(units, shared_memory(x.device))
        self.sizes = {"WIDTH": width, "ROW": filled(width, ROW)}
        self.tiles, self.join = {"U": units, "V": rest}, {"JOIN": JOINS.index(join)}
        features = x.shape[1]
        self.ends = {"FEATURES": features, "INPUT_ROW": filled(features, ROW), "F": min(FEATURES, tiled(features))}
        self.classes = {"CLASSES": classes, "C": tiled(classes)}
        self.kind = {"PRESENT": sum(BITS[name] for name in set(own))}
        self.keeps = {"KEEPS_INPUT": any(name in KEEP_INPUT for name in own)}

    def __len__(self) -> int:
        return len(self.momentum)

    def set_rate(self, rate: Float[Tensor, " net"]) -> None:
        """Step sizes: the factor on the gradient, (1 - momentum) included."""
        self.scale.copy_(-rate)

    @torch.no_grad()
    def step(self, index: Int[Tensor, " sample"], weight: Float[Tensor, " sample"]) -> None:
        """Every net takes a step on the mean loss of these samples; `weight` is each one's part in the mean."""
        w, v, b, vb = self.weights, self.moving, self.biases, self.moving_biases
        nets, slots, width = len(self), self.saved.shape[2], self.sizes["WIDTH"]
        forward, backward, update = (options(launch, self.samples)
                                     for launch in (self.forward, self.backward, self.updates))
        common = {**self.sizes, **self.classes, "BATCH": self.samples}
        passes = {**common, **self.tiles, **self.join, **self.kind, **self.keeps}
        kernels.step_forward[nets, -(-self.samples // forward["S"])](
            w["in"], b["in"], w["blocks"], b["blocks"], w["out"], b["out"], self.x, self.labels, index, weight,
            self.scale, self.kinds, self.saved, self.deltas, self.layers, **self.ends, **passes, **forward)
        kernels.step_backward[nets, -(-self.samples // backward["S"])](
            w["blocks"], w["out"], self.kinds, self.saved, self.deltas, self.layers, **passes, **backward)
        del update["STAGES"]
        kernels.update_ends[-(-self.ends["FEATURES"] // self.ends["F"]), nets](
            w["in"], v["in"], b["in"], vb["in"], w["out"], v["out"], b["out"], vb["out"], self.x, index, self.deltas,
            self.saved, self.momentum, self.layers, **self.ends, **common, COLUMNS=tiled(width), SLOTS=slots, **update)
        if self.layers:
            kernels.update_blocks[self.layers * (slots - 1), nets](
                w["blocks"], v["blocks"], b["blocks"], vb["blocks"], self.saved, self.momentum, self.layers,
                **self.sizes, **self.tiles, **self.join, BATCH=self.samples, **update)

    @torch.no_grad()
    def loss(self) -> Float[Tensor, " net"]:
        """Mean cross-entropy [nats per sample] over the training set, float64."""
        w, b, count = self.weights, self.biases, len(self.x)
        forward = options(self.forward, count)
        found = self.momentum.new_empty(len(self), count)
        # Triton launches on the current device; the first launch compiles, one thread at a time, as the steps' does.
        with CAPTURES, torch.cuda.device_of(found):
            kernels.losses[-(-count // forward["S"]), len(self)](
                w["in"], b["in"], w["blocks"], b["blocks"], w["out"], b["out"], self.x, self.labels, self.kinds, found,
                self.layers, count, **self.ends, **self.sizes, **self.classes, **self.tiles, **self.join, **self.kind,
                **forward)
        return found.sum(1, dtype=torch.float64) / count

    def parameters(self) -> dict[str, Tensor]:
        """By name, (net, ...) each; views of what steps change."""
        return self.views(self.weights, self.biases)

    def velocities(self) -> dict[str, Tensor]:
        return self.views(self.moving, self.moving_biases)

    def views(self, weights: dict[str, Tensor], biases: dict[str, Tensor]) -> dict[str, Tensor]:
        enter, *blocks, leave = self.names
        found = {}
        places = [("in", enter, ()), *(("blocks", name, (layer,)) for layer, name in enumerate(blocks)),
                  ("out", leave, ())]
        for part, name, layer in places:
            inputs = self.x.shape[1] if part == "in" else self.biases["in"].shape[1]
            found[f"{name}.weight"] = weights[part][(slice(None), *layer)][..., :inputs]
            found[f"{name}.bias"] = biases[part][(slice(None), *layer)]
        return found

    def bytes(self) -> int:
        """Of weights, velocities, the buffers of a step, and the losses of single samples."""
        numbers = [self.saved, self.deltas, *(value for part in (self.weights, self.moving, self.biases,
                                                                self.moving_biases) for value in part.values())]
        return sum(value.nbytes for value in numbers) + self.deltas.element_size() * len(self) * len(self.x)


def launches(units: int, shared: int) -> tuple[Launch, Launch, Launch]:
    """Of the forward pass, the backward pass, and the updates.

    Args:
        units: of the larger tile that holds a layer.
        shared: bytes of shared memory that a program can have.
    """
    if units > 64:
        return WIDE, WIDE, WIDE
    return (DEEP, DEEP, SHALLOW) if shared >= OF_DEEP else (SHALLOW, SHALLOW, SHALLOW)


def shared_memory(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter, which takes any
        return OF_DEEP
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def options(launch: Launch, samples: int) -> dict[str, object]:
    """What a kernel is compiled with besides sizes."""
    return {"S": min(launch.samples, tiled(samples)), "PRECISION": precision(), "STAGES": launch.stages,
            "num_warps": launch.warps}


def precision() -> str:
    """As `matrix_precision` has it for torch's own products."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def two_tiles(width: int, maps: int) -> tuple[int, int]:
    """Powers of two that hold a layer's units: 64 and 16 hold 71 at two fifths of the work of 128.

    Blocks of two maps, highway ones, would then need more registers than there are.
    """
    if 64 < width <= 80 and maps == 1:
        return 64, 16
    return tiled(width), 0


@functools.cache
def tiled(size: int) -> int:
    """The power of two that holds so many, at least LEAST."""
    return max(LEAST, 1 << (size - 1).bit_length())
