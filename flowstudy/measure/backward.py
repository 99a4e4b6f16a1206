"""A backward pass with an exponent at every cut of the model, so that an error signal of 1e-400 is 1e-400.

The model is run segment by segment (a chain's factors, or the whole model where it is not a chain), and the graph is
cut between segments.  On the way back the error signal is brought to size one at every cut, by a power of two that is
kept beside it: multiplying by a power of two is exact, so nothing is lost, however far the norm has fallen or grown.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .chain import Function, chain_of

# (h, taps) -> output of the segment, and of each layer called in it; taps are added to the layers' outputs
Segment = Callable[[Tensor, list[Tensor] | None], tuple[Tensor, list[Tensor]]]
Loss = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Scaled:
    """A tensor times 2**exponent, (net,) or a scalar: the exponent is a whole number, exact."""

    tensor: Tensor
    exponent: Float[Tensor, "*net"]

    def plus(self, other: "Scaled") -> "Scaled":
        exponent = torch.maximum(self.exponent, other.exponent)
        return Scaled(sum(times_power(one.tensor, one.exponent - exponent) for one in (self, other)), exponent)

    def normalised(self) -> "Scaled":
        """The same, the largest entry of each net in [0.5, 1); a net that is zero or not finite stays as it is."""
        peak = self.tensor.abs().flatten(self.exponent.ndim).amax(-1)
        shift = torch.where(peak.isfinite() & (peak > 0), torch.frexp(peak).exponent.to(peak), 0.0)
        return Scaled(times_power(self.tensor, -shift), self.exponent + shift)


def times_power(tensor: Tensor, exponent: Float[Tensor, "*net"]) -> Tensor:
    """tensor * 2**exponent, in two steps: 2**1074 is no float64."""
    exponent = exponent.clamp(-4000.0, 4000.0).view((*exponent.shape, *[1] * (tensor.ndim - exponent.ndim)))
    half = (exponent / 2).floor()
    return tensor * torch.exp2(half) * torch.exp2(exponent - half)


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass showed.

    Attributes:
        outputs: of each layer, in order of execution; with a leading net axis for a stack.
        errors: of each, the error signal, d loss / d output; None where the loss does not depend on it.
        gradients: d loss / d weight by name; absent where the loss does not depend on it.
        input_gradient: d loss / d input; None where it has none.
        loss: (net,) or a scalar.
    """

    outputs: list[Tensor]
    errors: list[Scaled | None]
    gradients: dict[str, Scaled]
    input_gradient: Scaled | None
    loss: Float[Tensor, "*net"]


class Probe:
    """What the layers' hooks do: keep each output and add the next tap, a zero whose gradient is the error signal.

    Backward hooks would not work under vmap, nor beside an in-place ReLU; a tap does not mind either.  The sum is a
    new tensor, so that no later in-place operation changes the output that was kept.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.outputs: list[Tensor] = []
        self.taps: list[Tensor] | None = None

    def begin(self, taps: list[Tensor] | None) -> None:
        self.names, self.outputs, self.taps = [], [], taps

    def __call__(self, name: str, output: Tensor) -> Tensor:
        self.names.append(name)
        self.outputs.append(output)
        return output if self.taps is None else output + self.taps[len(self.outputs) - 1]


def functions_of(model: nn.Module, layers: dict[str, nn.Module], x: Tensor) -> list[Function]:
    """The factors of the model's chain, or the model alone where it is none."""
    # A layer that is the model itself (it has parameters of its own) would not be called by a factor.
    chain = None if "" in layers else chain_of(model, x, leaves=set(layers.values()))
    return chain.functions if chain is not None and chain.self_contained else [model]


def segments_of(functions: list[Function], probe: Probe) -> list[Segment]:
    """Functions that are applied one after the other, as segments."""

    def segment(function: Function) -> Segment:
        def run(h: Tensor, taps: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
            probe.begin(taps)
            return function(h), probe.outputs
        return run

    return [segment(function) for function in functions]


def stacked_segments(parts: list[nn.Module], model: nn.Module, state: dict[str, Tensor],
                     probe: Probe) -> list[Segment]:
    """The same of every net of a stack; `parts` are the model itself, or its submodules applied one by one."""
    names = {module: f"{name}." if name else "" for name, module in model.named_modules()}

    def segment(part: nn.Module) -> Segment:
        prefix = names[part]
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        def one_net(own: dict[str, Tensor], h: Tensor, taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            probe.begin(taps)
            return torch.func.functional_call(part, own, (h,)), probe.outputs

        return lambda h, taps: torch.func.vmap(one_net)(own, h, taps)

    return [segment(part) for part in parts]


@dataclass(frozen=True)
class Calls:
    """One dry forward pass: which layers each segment calls, in order, and what shape comes out of each."""

    names: list[list[str]]
    shapes: list[list[torch.Size]]
    output: Tensor

    @property
    def layers(self) -> list[str]:
        return [name for names in self.names for name in names]


@torch.no_grad()
def dry_run(segments: list[Segment], x: Tensor, probe: Probe) -> Calls:
    names, shapes = [], []
    for segment in segments:
        x, outputs = segment(x, None)
        names.append(probe.names)
        shapes.append([output.shape for output in outputs])
    return Calls(names, shapes, x)


def forward_and_back(segments: list[Segment], calls: Calls, weights: dict[str, Tensor], x: Tensor, y: Tensor | None,
                     objective: Loss, nets: tuple[int, ...] = ()) -> Pass:
    """One pass forward, segment by segment, and one back.

    Args:
        weights: the leaves whose gradients are wanted, by name.
        x: the input; of a stack, with a leading net axis.
        objective: (output, y) -> loss, a scalar per net.
        nets: () for one model, (n,) for a stack.
    """
    parts, h = [], x
    for segment, shapes in zip(segments, calls.shapes, strict=True):
        start = h.detach().requires_grad_(h.is_floating_point())
        taps = [torch.zeros(*nets, *shape, dtype=torch.float64, device=x.device, requires_grad=True)
                for shape in shapes]
        h, outputs = segment(start.clone(), taps)  # a clone: the segment may begin with an in-place operation
        parts.append((start, taps, h, [output.detach() for output in outputs]))

    end = h.detach().requires_grad_()
    loss = objective(end, y)
    error = Scaled(torch.autograd.grad(loss.sum(), end)[0], torch.zeros(nets, dtype=torch.float64, device=x.device))
    names = {id(value): name for name, value in weights.items()}
    errors: list[Scaled | None] = []
    gradients: dict[str, Scaled] = {}
    outputs: list[Tensor] = []
    while parts:  # popped: a segment's graph is freed once it is done
        start, taps, h, found = parts.pop()
        outputs = found + outputs
        error, at_taps, at_weights = back(start, taps, h, error, names)
        errors = at_taps + errors
        for name, gradient in at_weights.items():
            gradients[name] = gradients[name].plus(gradient) if name in gradients else gradient
    return Pass(outputs, errors, gradients, error, loss.detach())


def back(start: Tensor, taps: list[Tensor], output: Tensor, error: Scaled | None, names: dict[int, str],
         ) -> tuple[Scaled | None, list[Scaled | None], dict[str, Scaled]]:
    """The error signal at a segment's start and taps, and its weights' gradients, from the one at its output."""
    if error is None or not output.requires_grad:
        return None, [None] * len(taps), {}
    error = error.normalised()
    leaves = leaves_of(output)
    used = [leaves[key] for key in names if key in leaves]
    wanted = [*([start] if start.requires_grad else []), *taps, *used]
    found = [None if g is None else Scaled(g, error.exponent) for g in
             torch.autograd.grad(output, wanted, error.tensor, allow_unused=True)]
    before = found.pop(0) if start.requires_grad else None
    at_weights = {names[id(leaf)]: g for leaf, g in zip(used, found[len(taps):], strict=True) if g is not None}
    return before, found[:len(taps)], at_weights


def leaves_of(output: Tensor) -> dict[int, Tensor]:
    """The leaves of the output's graph, by identity: of a thousand layers' weights a segment uses two or three."""
    leaves, seen, waiting = {}, set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        waiting += [below for below, _ in node.next_functions]
    return leaves

