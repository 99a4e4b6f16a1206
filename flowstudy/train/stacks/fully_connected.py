"""A stack of the fully connected nets of this library, trained by the hand-written layers of stacked_layers.py."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.names import meet_kinds
from flowstudy.nets.blocks import PlainBlock, runs_as
from flowstudy.nets.fully_connected import FullyConnected
from flowstudy.train.batches import Batches, in_batches, padded_size

from .activations import SATURATED, activation_of
from .stacked_layers import Affine, Biases, Kept, PlainLayer, Scratch, scratch_of

# Classes of nets, and the stacked layer of each class of block.  `flowstudy.kinds` fills both.
NETS: set[type[FullyConnected]] = {FullyConnected}
LAYERS: dict[type[nn.Module], type] = {}
EVALUATION_BATCH = 512    # samples at least: on a CPU what an evaluation keeps then stays in the cache
EVALUATION_BYTES = 2**27  # of a layer's outputs, elsewhere: there calls cost more than a few gigabytes in all


class StackedFullyConnected:
    """Same-structure nets with their velocities and the buffers of a step of `samples` samples.

    Args:
        template: a module of the nets' structure: `input`, `blocks`, `readout`.
        state: parameters by name, (net, ...) each; copied.
        momentum: (net,).
        x, y: the training set that steps take their samples from.
        samples: a step's batch, padding included.
        activations: each net's; none: all have the template's.
    """

    def __init__(self, template: nn.Module, state: dict[str, Tensor], momentum: Float[Tensor, " net"],
                 x: Float[Tensor, "sample feature"], y: Int[Tensor, " sample"], samples: int,
                 activations: tuple[str, ...] = ()):
        self.x, self.y = x, y
        first = state["input.affine.weight"]
        self.momentum = momentum.to(first).view(-1, 1, 1)
        names = affine_names(template)
        self.biases = [Biases(torch.stack([state[f"{name}.bias"].detach() for name in alike]), self.momentum)
                       for alike in (names[:1], names[1:-1], names[-1:]) if alike]
        places = [(biases, i) for biases in self.biases for i in range(len(biases.values))]
        self.affines = {name: Affine(copy_of(state[f"{name}.weight"]), *place, self.momentum)
                        for name, place in zip(names, places, strict=True)}
        self.scale = torch.zeros_like(self.momentum)
        kinds = [PlainLayer, *(LAYERS[type(block)] for block in template.blocks)]
        self.layers = [layer(affine, activation_of(activations or [module.activation])) for layer, affine, module in
                       zip(kinds, self.affines.values(), [template.input, *template.blocks], strict=False)]
        self.readout = self.affines["readout"]
        self.targets = F.one_hot(y, self.readout.weight.shape[1]).to(first)
        self.kept = [layer.keep(len(self), self.width, samples) for layer in self.layers]
        self.scratch, self.logits, self.gradient = self.shared(samples)

    def __len__(self) -> int:
        return len(self.momentum)

    def set_rate(self, rate: Float[Tensor, " net"]) -> None:
        """Step sizes: the factor on the gradient, (1 - momentum) included."""
        self.scale.copy_(-rate.view(-1, 1, 1))

    def run(self, batches: Batches) -> None:
        """A step for each batch."""
        for index, weight in zip(*batches, strict=True):
            self.step(index, weight)

    @torch.no_grad()
    def step(self, index: Int[Tensor, " sample"], weight: Float[Tensor, " sample"]) -> None:
        """Every net takes a step on the mean loss of these samples; `weight` is each one's part in the mean."""
        x = self.inputs(index)
        for _ in self.forward(x, self.kept, self.scratch, self.logits):
            pass
        inputs = [(x, x.mT), *((kept.out, kept.out_transposed) for kept in self.kept)]  # of the layers and the read-out
        # Scaled here, at the few outputs, every gradient that follows is the step itself.
        delta = torch.softmax(self.logits, 1).sub_(self.targets[index].mT).mul_(weight.to(x.dtype)).mul_(self.scale)
        torch.bmm(self.readout.transposed, delta, out=self.gradient)
        self.readout.update(delta, inputs[-1][1])
        for i in range(len(self.layers) - 1, 0, -1):
            self.layers[i].backward(self.gradient, *inputs[i], self.kept[i], self.scratch)
        self.layers[0].backward(self.gradient, *inputs[0], self.kept[0], self.scratch, to_input=False)
        for biases in self.biases:
            biases.update()

    @torch.no_grad()
    def loss(self) -> Float[Tensor, " net"]:
        """Mean cross-entropy [nats per sample] over the training set, float64."""
        size = min(self.evaluation_batch(), len(self.x))
        kept = self.two_of_each(padded_size(size))
        scratch, logits, _ = self.shared(padded_size(size))
        total = torch.zeros(len(self), dtype=torch.float64, device=self.x.device)
        for index, weight in zip(*in_batches(len(self.x), size), strict=True):
            index = index.to(self.x.device, non_blocking=True)
            for _ in self.forward(self.inputs(index), kept, scratch, logits):
                pass
            of_label = torch.log_softmax(logits, 1).gather(1, self.y[index].expand(len(self), 1, -1)).squeeze(1)
            total -= of_label[:, :weight.count_nonzero()].double().sum(-1)  # the padding comes last
        return total / len(self.x)

    def evaluation_batch(self) -> int:
        if self.x.device.type == "cpu":
            return EVALUATION_BATCH
        return max(EVALUATION_BATCH, EVALUATION_BYTES // (self.readout.weight[:, 0].nbytes))

    def parameters(self) -> dict[str, Tensor]:
        """By name, (net, ...) each; views of what steps change."""
        return {f"{name}.{part}": value for name, affine in self.affines.items()
                for part, value in (("weight", affine.weight), ("bias", affine.bias.squeeze(-1)))}

    def velocities(self) -> dict[str, Tensor]:
        return {f"{name}.{part}": value for name, affine in self.affines.items()
                for part, value in (("weight", affine.velocity), ("bias", affine.bias_velocity.squeeze(-1)))}

    def bytes(self) -> int:
        """Of weights, velocities and the buffers of a step."""
        buffers = [self.logits, self.gradient, self.scratch.pre, self.scratch.unit,
                   *(tensor for kept in self.kept for tensor in (kept.pre, kept.h, kept.out))]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                    for tensor in (*buffers, *self.parameters().values(), *self.velocities().values())}
        return sum(storages.values())

    @property
    def width(self) -> int:
        return self.readout.weight.shape[2]

    # --- passes ------------------------------------------------------------------------------------------------------

    def inputs(self, index: Tensor) -> Tensor:
        return self.x[index].mT.contiguous().expand(len(self), -1, -1)

    def forward(self, x: Tensor, kept: list[Kept], scratch: Scratch, logits: Tensor) -> Iterator[Tensor]:
        """Every hidden layer's output in turn; the logits are there at the end."""
        for layer, own in zip(self.layers, kept, strict=True):
            x = layer.forward(x, own, scratch)
            yield x
        self.readout.forward(x, logits)

    # --- buffers -----------------------------------------------------------------------------------------------------

    def shared(self, samples: int) -> tuple[Scratch, Tensor, Tensor]:
        """What layers use in turn; the logits; the gradient on its way back."""
        unit = self.readout.weight.new_empty(len(self), self.width, samples)
        rows = max(layer.pre_rows for layer in self.layers) * self.width
        logits = unit.new_empty(len(self), self.readout.weight.shape[1], samples)
        scratch = scratch_of(unit.new_empty(len(self), rows, samples), self.width, unit)
        return scratch, logits, torch.empty_like(unit)

    def two_of_each(self, samples: int) -> list[Kept]:
        """A forward pass that nobody goes back: a layer's input and output are all that is kept."""
        first, *blocks = self.layers
        pair = [block.keep(len(self), self.width, samples) for block in blocks[:2]]
        return [first.keep(len(self), self.width, samples), *(pair[i % 2] for i in range(len(blocks)))]


# --- what is known ---------------------------------------------------------------------------------------------------


def trains_by_hand(template: nn.Module) -> bool:
    """Whether the template is, to the last hook and weight, a net that the hand-written layers compute.

    Any other module is for StackedModules: a subclass or a replaced part would train as what it is not.
    """
    meet_kinds()
    if not any(runs_as(template, net) for net in NETS) or not runs_as(template.blocks, nn.Sequential):
        return False
    blocks = list(template.blocks)
    kind = type(blocks[0]) if blocks else PlainBlock
    if kind not in LAYERS or not runs_as(template.input, PlainBlock) or not all(runs_as(b, kind) for b in blocks):
        return False
    if len({block.activation for block in blocks}) > 1:  # evaluation puts the blocks' outputs in the same two buffers
        return False
    affines = [template.input.affine, *(block.affine for block in blocks), template.readout]
    if not all(runs_as(affine, nn.Linear) for affine in affines):
        return False
    width, rows = template.readout.weight.shape[1], LAYERS[kind].pre_rows
    shapes = [(width, template.input.affine.weight.shape[1]), *[(rows * width, width)] * len(blocks),
              tuple(template.readout.weight.shape)]
    names = {f"{name}.{part}" for name in affine_names(template) for part in ("weight", "bias")}
    parameters = dict(template.named_parameters())  # a tied weight has one name: the others are missing
    return ([tuple(affine.weight.shape) for affine in affines] == shapes
            and parameters.keys() == names and not any(True for _ in template.buffers())
            and len({p.dtype for p in parameters.values()}) == 1 and next(iter(parameters.values())).dtype in SATURATED)


def compiled_form(template: FullyConnected) -> str | None:
    """What the compiled steps call the layers of such a net; None for a kind that they do not know."""
    meet_kinds()
    kind = type(template.blocks[0]) if len(template.blocks) else PlainBlock
    return vars(LAYERS[kind]).get("compiled")


def affine_names(template: FullyConnected) -> list[str]:
    """From the input on."""
    return ["input.affine", *(f"blocks.{i}.affine" for i in range(len(template.blocks))), "readout"]


def copy_of(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format)
