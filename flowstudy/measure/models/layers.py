"""The layers of a model, the weights that belong to each, and hooks that change their outputs."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowstudy.nets.blocks import runs_as
from flowstudy.nets.fully_connected import FullyConnected
from flowstudy.refusal import RefusalError

from .inputs import with_tensors
from .outputs import numbers_in


def layers_of(call: str, model: nn.Module) -> dict[str, nn.Module]:
    """The layers by name: the model's `hidden_layers` where it lists them, else every module with its own weights."""
    layers = listed_layers(model) or {name: module for name, module in model.named_modules() if module in owners(model)}
    if not layers:
        raise RefusalError(f"{call}: `model` must have layers with weights, got {type(model).__name__} without any.")
    return layers


def listed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules in `model.hidden_layers`, by name; empty where the model lists none."""
    listed = getattr(model, "hidden_layers", None)
    if not isinstance(listed, list | tuple | nn.ModuleList) or not all(isinstance(m, nn.Module) for m in listed):
        return {}
    wanted = set(listed)
    return {name: module for name, module in model.named_modules() if module in wanted}


def parts_of_own_net(model: nn.Module) -> list[nn.Module] | None:
    """The submodules that one of flowstudy's own fully connected nets applies one after the other; None for others."""
    kind = type(model)
    own = (isinstance(model, FullyConnected) and kind.forward is FullyConnected.forward
           and kind.hidden_layers is FullyConnected.hidden_layers and kind.__call__ is nn.Module.__call__)
    if not own or not runs_as(model, kind) or not runs_as(model.blocks, nn.Sequential):
        return None
    return [*model.hidden_layers, model.readout]


def owners(model: nn.Module) -> set[nn.Module]:
    """The modules with parameters of their own; a parametrized weight is the parametrized module's own."""
    inside = {part for module in model.modules() if parametrize.is_parametrized(module)
              for part in module.parametrizations.modules()}
    own = {m for m in model.modules() if any(p is not None for p in m._parameters.values())}
    return {m for m in model.modules() if m not in inside and (m in own or parametrize.is_parametrized(m))}


def kind_of(layer: nn.Module) -> str:
    """The class of a layer, as its author wrote it."""
    return parametrize.type_before_parametrizations(layer).__name__


def is_norm(kind: str) -> bool:
    """Whether a layer is a normalisation, by its class name: BatchNorm2d, LayerNorm, LlamaRMSNorm."""
    return re.search(r"Norm([123]d)?$", kind) is not None


def input_features(model: nn.Module) -> int | None:
    """Features of one sample, where the model says so or its first layer with weights is linear; else None."""
    first = next((module for module in model.modules() if module._parameters), None)
    features = getattr(model, "in_features", getattr(first, "in_features", None))
    return features if isinstance(features, int) else None


CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
FEATURES_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention,
                 nn.RNNBase)


def positions(layer: nn.Module | None, shape: torch.Size, samples: int) -> int:
    """Places of one sample at which the layer's weights act: pixels, tokens; 1 in a fully connected net.

    Args:
        layer: None for a weight that is used by itself.
        shape: of the output: (sample, ..., feature), or (sample, channel, ...) of layers that have channels; a lookup
            that all samples share has no axis for them.
    """
    if len(shape) < 2 or shape[0] != samples:
        return math.prod(shape[:-1])
    unknown = not isinstance(layer, CHANNELS_FIRST + FEATURES_LAST)
    first = isinstance(layer, CHANNELS_FIRST) or (unknown and len(shape) > 3)
    return math.prod(shape[2:] if first else shape[1:-1])


@contextmanager
def changed_outputs(layers: dict[str, nn.Module], change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Each layer's output goes through `change(name, output)` while the context lasts.

    Of a structure, the first real or complex tensor is the output; the structure stays what it was.
    """

    def hook(name: str, output: object) -> object:
        h = next(numbers_in(output), None)
        if h is None:
            return output
        changed = change(name, h)
        return output if changed is h else with_tensors(output, lambda _, t: changed if t is h else t)

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(lambda _module, _args, output, name=name: hook(name, output))
            stack.callback(handle.remove)
        yield


def weights_of(model: nn.Module, layers: dict[str, nn.Module], called: Iterable[str]) -> dict[str, list[str]]:
    """Names, as in `model.named_parameters()`, of the weights of each called layer, biases left out.

    A parameter belongs to the innermost called layer around it: an attention layer owns its output projection, which
    is never called by itself, but a model with a parameter of its own does not own its layers' weights.  A tied weight
    goes by its first name.  A layer that has no weight (a scale and a shift of its own names) has its other parameters.
    """
    first = {id(p): name for name, p in model.named_parameters()}
    layer_at = dict(model.named_modules(remove_duplicate=False))
    name_of = {layers[name]: name for name in called}
    weights: dict[str, list[str]] = {name: [] for name in name_of.values()}
    others: dict[str, list[str]] = {name: [] for name in name_of.values()}
    for path, p in model.named_parameters(remove_duplicate=False):
        at, _, own = path.rpartition(".")
        while at and layer_at[at] not in name_of:
            at = at.rpartition(".")[0]
        owner = name_of.get(layer_at[at])
        if owner is None:
            continue
        own = path.removeprefix(f"{at}.")
        into = weights if is_weight(own, p.ndim) else others
        if first[id(p)] not in into[owner]:
            into[owner].append(first[id(p)])
    return {name: found or others[name] for name, found in weights.items()}


def is_weight(name: str, ndim: int) -> bool:
    """Biases are left out; a norm layer's scale counts, and so do the parts of a parametrized weight."""
    return ndim >= 2 or "weight" in name.split(".")[-2:]


def shared_out(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Parameter]]:
    """The layers that are measured by what they put out, and the weights that are measured by each use of them.

    A module of torch's own, or one with a single weight and no layer inside, is a layer, and so is one that has a
    scale or a bias but no weight.  Of a module that computes with several weights of its own, with one beside layers
    inside it, or with weights that it keeps in a list, every use of every weight is a layer.
    """
    if listed := listed_layers(model):
        return listed, {}
    own = owners(model)
    names = {module: name for name, module in model.named_modules()}
    layers, loose = {}, {}
    for module in own - containers(model):
        weights = own_weights(module)
        inside = any(part in own for part in module.modules() if part is not module)
        alone = not weights or (len(weights) == 1 and not inside)
        if alone or is_torchs_own(module):
            layers[names[module]] = module
        else:
            loose |= {f"{names[module]}.{name}".lstrip("."): p for name, p in weights.items()}
    for container in containers(model):
        loose |= {f"{names[container]}.{name}".lstrip("."): p for name, p in container._parameters.items()
                  if p is not None}
    order = list(names.values())
    return dict(sorted(layers.items(), key=lambda item: order.index(item[0]))), loose


def containers(model: nn.Module) -> set[nn.Module]:
    return {module for module in model.modules() if isinstance(module, nn.ParameterList | nn.ParameterDict)}


def own_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own weights, biases and scales left out."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if parametrize.is_parametrized(module):
        own |= {f"parametrizations.{name}": p for name, p in module.parametrizations.named_parameters()}
    return {name: p for name, p in own.items() if is_weight(name, p.ndim)}


def is_torchs_own(module: nn.Module) -> bool:
    """Computes as a class of torch.nn does: it is one layer, however many weights it has."""
    kind = parametrize.type_before_parametrizations(module)
    return kind.forward.__module__.startswith("torch.nn.") and "forward" not in vars(module)
