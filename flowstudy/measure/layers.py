"""Which modules of a model are its layers, in which order they run, and a way into what each puts out."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


def layers_of(call: str, model: nn.Module) -> dict[str, nn.Module]:
    """The layers by name: the model's `hidden_layers` where it lists them, else every module with its own weights."""
    listed = getattr(model, "hidden_layers", None)
    if isinstance(listed, list | tuple | nn.ModuleList) and all(isinstance(m, nn.Module) for m in listed):
        wanted = set(listed)
    else:
        wanted = {m for m in model.modules() if any(p is not None for p in m._parameters.values())}
    layers = {name: module for name, module in model.named_modules() if module in wanted}
    if not layers:
        raise ValueError(f"{call}: `model` must have layers with weights, got {type(model).__name__} without any.")
    return layers


def input_features(model: nn.Module) -> int | None:
    """Features of one sample, where the model says so or its first layer with weights is linear; else None."""
    first = next((module for module in model.modules() if module._parameters), None)
    features = getattr(model, "in_features", getattr(first, "in_features", None))
    return features if isinstance(features, int) else None


CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def describe(layers: dict[str, nn.Module], called: list[str], shapes: list[torch.Size]) -> dict[str, list]:
    """The columns that say which layer is which, a row per call; `shapes` are those of the outputs."""
    return {
        "layer": list(range(1, len(called) + 1)),
        "module": called,
        "type": [type(layers[name]).__name__ for name in called],
        "parameters": [sum(p.numel() for p in layers[name].parameters()) for name in called],
        "positions": [positions(layers[name], shape) for name, shape in zip(called, shapes, strict=True)],
    }


def positions(layer: nn.Module, shape: torch.Size) -> int:
    """Places of one sample at which the layer's weights act: pixels, tokens; 1 in a fully connected net."""
    first = isinstance(layer, CHANNELS_FIRST) or len(shape) > 3
    return math.prod(shape[2:] if first else shape[1:-1])


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
    first = {id(p): name for name, p in model.named_parameters()}
    layer_at = dict(model.named_modules(remove_duplicate=False))
    name_of = {layers[name]: name for name in called}
    weights: dict[str, list[str]] = {name: [] for name in name_of.values()}
    for path, p in model.named_parameters(remove_duplicate=False):
        at, _, own = path.rpartition(".")
        while at and layer_at[at] not in name_of:
            at = at.rpartition(".")[0]
        owner = name_of.get(layer_at[at])
        if owner is not None and is_weight(own, p.ndim) and first[id(p)] not in weights[owner]:
            weights[owner].append(first[id(p)])
    return weights


def is_weight(name: str, ndim: int) -> bool:
    return ndim >= 2 or name.rpartition(".")[2] == "weight"  # biases are left out; a norm layer's scale counts
