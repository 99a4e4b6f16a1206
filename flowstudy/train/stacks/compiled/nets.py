"""A chunk of fully connected nets whose steps are the compiled ones: one net after the other, without Python between.

What a net needs lies together: its weights, rows filled up to whole vectors, and biases, layer by layer.
"""

import ctypes
import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowstudy.train.batches import Batches

from .compiler import library

ACTIVATIONS = ("relu", "tanh", "sigmoid", "linear", "gelu", "hard_tanh", "erf")  # in the order of functions.h
JOINS = ("plain", "residual", "highway")  # in the order of steps.c
ALIGNED = 16  # floats: where a layer's numbers may begin


class Net(ctypes.Structure):
    """`struct net` of steps.c."""

    _fields_ = [*((name, ctypes.c_int64) for name in
                  ("features", "width", "classes", "layers", "activation", "join", "batch")),
                ("weights_at", ctypes.c_void_p), ("biases_at", ctypes.c_void_p)]


class CompiledFullyConnected:
    """Same-structure nets, float32 on a CPU, with their velocities.

    Args:
        template: a module of the nets' structure: `input`, `blocks`, `readout`.
        joins: how a block's output is made of its input and H: one of JOINS.
        names: of the affine maps, from the input to the read-out.
        state: parameters by name, (net, ...) each; copied.
        momentum: (net,).
        x, y: the training set that steps take their samples from.
        samples: a step's batch, padding included.
        activations: each net's; none: all have the template's.
    """

    def __init__(self, template: nn.Module, joins: str, names: list[str], state: dict[str, Tensor],
                 momentum: Float[Tensor, " net"], x: Float[Tensor, "sample feature"], y: Int[Tensor, " sample"],
                 samples: int, activations: tuple[str, ...] = ()):
        self.library = library()[0]
        self.x, self.y = x.contiguous(), y.contiguous()
        self.momentum, self.rate = momentum.tolist(), [0.0] * len(momentum)
        self.places = Places(names, state, self.library.lanes())
        self.values = torch.zeros(len(momentum), self.places.size)
        self.moving = torch.zeros_like(self.values)
        for name, view in self.parameters().items():
            view.copy_(state[name].detach())
        classes, width = state["readout.weight"].shape[1:]
        common = x.shape[1], width, classes, len(names) - 1
        own = activations or [template.input.activation] * len(self)
        self.nets, self.evaluated = ([self.places.net(*common, ACTIVATIONS.index(name), JOINS.index(joins), batch)
                                      for name in own] for batch in (samples, self.library.evaluated()))

    def __len__(self) -> int:
        return len(self.values)

    def set_rate(self, rate: Float[Tensor, " net"]) -> None:
        """Step sizes: the factor on the gradient, (1 - momentum) included."""
        self.rate = rate.tolist()

    def run(self, batches: Batches) -> None:
        """A step for each batch, of every net."""
        index, weight = batches.index.contiguous(), batches.weight.contiguous()
        scratch = self.scratch(self.nets[0], self.nets[0].layers)
        for net, values, moving, momentum, rate in zip(self.nets, self.values, self.moving, self.momentum, self.rate,
                                                       strict=True):
            self.library.train(ctypes.byref(net), values.data_ptr(), moving.data_ptr(), momentum, rate,
                               self.x.data_ptr(), self.y.data_ptr(), index.data_ptr(), weight.data_ptr(), len(index),
                               scratch.data_ptr())

    def loss(self) -> Float[Tensor, " net"]:
        """Mean cross-entropy [nats per sample] over the training set, float64."""
        scratch = self.scratch(self.evaluated[0], 2)
        sums = [self.library.loss(ctypes.byref(net), values.data_ptr(), self.x.data_ptr(), self.y.data_ptr(),
                                  len(self.x), scratch.data_ptr())
                for net, values in zip(self.evaluated, self.values, strict=True)]
        return torch.tensor(sums, dtype=torch.float64) / len(self.x)

    def parameters(self) -> dict[str, Tensor]:
        """By name, (net, ...) each; views of what steps change."""
        return self.places.views(self.values)

    def velocities(self) -> dict[str, Tensor]:
        return self.places.views(self.moving)

    def bytes(self) -> int:
        """Of weights, velocities and the buffers of a step, which the nets use in turn."""
        scratch = self.library.scratch_size(ctypes.byref(self.nets[0]), self.nets[0].layers)
        return self.values.nbytes + self.moving.nbytes + self.values.element_size() * scratch

    def scratch(self, net: Net, layers: int) -> Tensor:
        return torch.zeros(self.library.scratch_size(ctypes.byref(net), layers))


class Places:
    """Where each layer's weights and biases lie among a net's numbers.

    Args:
        names: of the affine maps, in the order of the layers.
        state: (net, ...) parameters, whose shapes count.
        lanes: floats of a vector: a row of weights is filled up to a multiple of it.
    """

    def __init__(self, names: list[str], state: dict[str, Tensor], lanes: int):
        self.shapes = {name: tuple(state[f"{name}.weight"].shape[1:]) for name in names}
        self.rows = {name: filled(inputs, lanes) for name, (_, inputs) in self.shapes.items()}
        sizes = [filled(size, ALIGNED) for name, (units, _) in self.shapes.items()
                 for size in (units * self.rows[name], units)]
        *at, self.size = itertools.accumulate(sizes, initial=0)
        self.weights_at, self.biases_at = ((ctypes.c_int64 * len(names))(*at[first::2]) for first in (0, 1))

    def net(self, features: int, width: int, classes: int, layers: int, activation: int, join: int, batch: int) -> Net:
        """It points into this object, which must outlive it."""
        return Net(features, width, classes, layers, activation, join, batch, ctypes.addressof(self.weights_at),
                   ctypes.addressof(self.biases_at))

    def views(self, values: Float[Tensor, "net number"]) -> dict[str, Tensor]:
        """By name, (net, ...) each."""
        found = {}
        for (name, (units, inputs)), weight, bias in zip(self.shapes.items(), self.weights_at, self.biases_at,
                                                         strict=True):
            row = self.rows[name]
            found[f"{name}.weight"] = values[:, weight:weight + units * row].unflatten(1, (units, row))[..., :inputs]
            found[f"{name}.bias"] = values[:, bias:bias + units]
        return found


def filled(size: int, step: int) -> int:
    return -(-size // step) * step
