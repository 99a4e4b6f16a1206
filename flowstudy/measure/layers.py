"""Which modules of a model are its layers, in which order they run, and a way into what each puts out."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Calls:
    """One dry forward pass: which layer was called, in order, and what came out."""

    names: list[str]
    shapes: list[torch.Size]
    output: Tensor


def layers_of(call: str, model: nn.Module) -> dict[str, nn.Module]:
    hidden = getattr(model, "hidden_layers", None)
    wanted = [m for m in model.modules() if m._parameters] if hidden is None else list(hidden)
    layers = {name: module for name, module in model.named_modules() if any(module is w for w in wanted)}
    if not layers:
        raise ValueError(f"{call}: `model` must have layers with weights, got {type(model).__name__} without any.")
    return layers


@torch.no_grad()
def called_layers(call: str, model: nn.Module, layers: dict[str, nn.Module], x: Tensor) -> Calls:
    names, shapes = [], []

    def note(name: str, output: Tensor) -> Tensor:
        names.append(name)
        shapes.append(output.shape)
        return output

    with hooks(layers, note):
        output = model(x)
    if not isinstance(output, Tensor):
        raise ValueError(f"{call}: `model` must return one tensor, got {type(output).__name__}. "
                         "Wrap it in a module that returns the tensor to measure.")
    return Calls(names, shapes, output)


def describe(layers: dict[str, nn.Module], calls: Calls) -> dict[str, list]:
    return {
        "layer": list(range(1, len(calls.names) + 1)),
        "module": calls.names,
        "type": [type(layers[name]).__name__ for name in calls.names],
        "parameters": [sum(p.numel() for p in layers[name].parameters()) for name in calls.names],
    }


@contextmanager
def hooks(layers: dict[str, nn.Module], change: Callable[[str, Tensor], Tensor]):
    """Each layer's output goes through `change(name, output)` while the context lasts; of a tuple, its first entry."""

    def hook(name: str, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return (hook(name, output[0]), *output[1:])
        return change(name, output)

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(lambda _module, _args, output, name=name: hook(name, output))
            stack.callback(handle.remove)
        yield


def weights_of(model: nn.Module, layers: dict[str, nn.Module], called: Iterable[str]) -> dict[str, list[str]]:
    """Names, as in `model.named_parameters()`, of the weights of each called layer, biases left out.

    A parameter belongs to the innermost called layer around it: an attention layer owns its output projection, which
    is never called by itself, but a model with a parameter of its own does not own its layers' weights.  A tied weight
    goes by its first name.
    """
    called = set(called)
    first = {id(p): name for name, p in model.named_parameters()}
    inside = {name: {id(p) for p in layers[name].parameters()} for name in called}
    weights = {}
    for name in called:
        inner = set().union(*(inside[other] for other in called
                              if other != name and any(m is layers[other] for m in layers[name].modules())))
        own = {id(p) for p in layers[name]._parameters.values() if p is not None}
        weights[name] = [first[id(p)] for part, p in layers[name].named_parameters()
                         if is_weight(part, p.ndim) and (id(p) in own or id(p) not in inner)]
    return weights


def is_weight(name: str, ndim: int) -> bool:
    return ndim >= 2 or name.rpartition(".")[2] == "weight"  # biases are left out; a norm layer's scale counts
