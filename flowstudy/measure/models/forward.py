"""One unchanged forward pass of a model, in which hooks record the outputs of its layers."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from flowstudy.refusal import RefusalError

from .graph import Key, edge_of, key_of
from .inputs import Inputs
from .outputs import is_inside_vmap, numbers_in, tensors_in
from .recurrent.cells import Place
from .recurrent.unrolled import is_steppable, unrolled

ACTIVATION_STATISTICS = ("activation_mean", "activation_mean_square", "zero_fraction", "activation_correlation")
functorch = torch._C._functorch
current_backward_pass = torch._C._current_graph_task_id  # -1 outside of backward passes


@dataclass(frozen=True)
class Use:
    """One use of a layer, or of a weight that is used by itself.

    Attributes:
        name: the module's, or the weight's.
        module: None for a weight that is used by itself.
        weights: of such a weight, its name and those of the weights that it was combined with; else empty.
        shape: of the output.
        edge: where the error signal arrives; None where the output asks for no gradient.
        statistics: see ACTIVATION_STATISTICS; of a stack, (net,) each.
        state: where the error signals of all that it puts out arrive, the output's first: of a recurrent cell, what the
            next time step is given.
        place: of a time step of a recurrent module, where in it; else None.
    """

    name: str
    module: nn.Module | None
    weights: tuple[str, ...]
    shape: torch.Size
    edge: GradientEdge | None
    statistics: tuple[Float[Tensor, "*net"], ...]
    state: tuple[GradientEdge, ...] = ()
    place: Place | None = None


def watched_pass(call: str, model: nn.Module, inputs: Inputs, layers: Mapping[str, nn.Module],
                 loose: Mapping[str, Tensor], steps: ExitStack) -> tuple[object, list[Use], dict[Key, Tensor]]:
    """The model's output, the uses of its layers and loose weights in order of execution, and the size of values.

    The sizes are mean squares, by edge, of what modules took and gave and of what met a loose weight: sums in between
    layers, on which the norms of gradients alone say little.

    A layer's output may have any structure: the first real or complex tensor in it counts.  Recurrent modules run step
    by step, each step a use.  Calls from within a backward pass, where a checkpointed part of the model is computed
    again, do not count.

    Args:
        steps: until it is closed, recurrent modules run step by step.

    Raises:
        ValueError: a layer is called inside torch.func.vmap.
    """
    uses: list[Use] = []
    sizes: dict[Key, Tensor] = {}
    by_step = {name: layer for name, layer in layers.items() if is_steppable(layer)}

    def passing(_module: nn.Module | None, *values: object) -> None:
        for h in filter(has_place_in_graph, numbers_in(values)):
            with torch._C.DisableTorchFunction(), torch.no_grad():
                key = key_of(edge_of(h))
                if key not in sizes:
                    sizes[key] = mean_square(h.detach(), 0)

    def seen(name: str, module: nn.Module | None, weights: tuple[str, ...], output: object,
             place: Place | None = None) -> None:
        h = next(numbers_in(output), None)
        if h is None or current_backward_pass() != -1:
            return
        if is_inside_vmap(h):
            raise RefusalError(f"{call}: `model` must call its layers outside of torch.func.vmap, got {name!r} called "
                               "inside, where what it puts out has no error signal. Call it on the whole batch.")
        with torch._C.DisableTorchFunction(), torch.no_grad():
            statistics = activation_statistics(h.detach(), 0, len(inputs))
        state = dict.fromkeys(edge_of(part) for part in filter(has_place_in_graph, numbers_in(output)))
        uses.append(Use(name, module, weights, h.shape, edge_of(h), statistics, tuple(state), place))

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(passing).remove)
            stack.callback(module.register_forward_hook(passing).remove)
        steps.enter_context(unrolled(call, by_step, lambda name, module, step: seen(
            name, module, (), step.state, step.place)))
        for name in layers.keys() - by_step.keys():
            handle = layers[name].register_forward_hook(
                lambda module, _args, output, name=name: seen(name, module, (), output))
            stack.callback(handle.remove)
        stack.enter_context(LooseWeights(loose, inputs, seen, passing) if loose else nullcontext())
        output = inputs.call_model(model)
    return output, uses, sizes


def has_place_in_graph(h: Tensor) -> bool:
    """Whether the value belongs to this forward pass's graph: not to recomputation in a backward pass, nor to vmap."""
    return (h.requires_grad and h.layout == torch.strided and not h.is_nested and current_backward_pass() == -1
            and not functorch.is_functorch_wrapped_tensor(h))


def activation_statistics(h: Tensor, lead: int, samples: int) -> tuple[Float[Tensor, "*net"], ...]:
    """Mean, mean square, share of exact zeros, and mean cosine between samples; of complex values |h|^2 = h conj(h)."""
    zeros = (h == 0).flatten(lead).double().mean(-1)
    h = h.to(torch.complex128) if h.is_complex() else h.double()
    mean = h.flatten(lead).mean(-1).real if h.is_complex() else h.flatten(lead).mean(-1)
    parts = torch.view_as_real(h) if h.is_complex() else h
    return mean, mean_square(h, lead), zeros, mean_cosine(parts, lead, samples)


def mean_square(h: Tensor, lead: int) -> Float[Tensor, "*net"]:
    parts = torch.view_as_real(h.to(torch.complex128)) if h.is_complex() else h.double()
    return parts.flatten(lead).square().sum(-1) / max(1, h.flatten(lead).shape[-1])


def mean_cosine(h: Tensor, lead: int, samples: int) -> Float[Tensor, "*net"]:
    """Mean cosine between two samples: |sum of unit vectors|^2 holds every pair twice and each sample once."""
    if samples < 2 or h.ndim <= lead + 1 or h.shape[lead] != samples:
        return torch.full(h.shape[:lead], torch.nan, dtype=h.dtype, device=h.device)
    unit = nn.functional.normalize(h.flatten(lead + 1), dim=-1, eps=0.0)
    return (unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))) / (samples * (samples - 1))


class LooseWeights(TorchFunctionMode):
    """Sees every operation in which one of the weights meets what was computed from the input.

    What is computed from weights alone (a transpose, a product with a scale) still stands for them.
    """

    def __init__(self, loose: Mapping[str, Tensor], inputs: Inputs, seen: Callable, passing: Callable):
        super().__init__()
        self.seen, self.passing = seen, passing
        self.size = {name: weight.numel() for name, weight in loose.items()}
        self.weights, self.moving = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        for x in inputs.tensors.values():
            self.moving[x] = True
        for name, weight in loose.items():
            self.weights[weight] = (name,)

    def __torch_function__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        made = list(tensors_in(result))
        if not made:
            return result
        given = list(tensors_in([args, kwargs or {}]))
        names = tuple(dict.fromkeys(name for t in given for name in self.weights.get(t, ())))
        if any(t in self.moving for t in given):
            for t in made:
                self.moving[t] = True
            if names:
                self.passing(None, given)
                largest = max(names, key=self.size.__getitem__)
                self.seen(largest, None, names, result)
        elif names:
            for t in made:
                self.weights[t] = names
        return result
