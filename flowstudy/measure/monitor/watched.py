"""The parts of a user's model that are watched: its layers, their weights, and which weight belongs to which layer."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize

from flowstudy.measure.models.layers import layers_of, weights_of
from flowstudy.refusal import RefusalError, RefusalTypeError

QUANTITIES = ("log10_weight_gradient_norm", "log10_clipped_gradient_norm", "update_to_weight",
              "log10_error_signal_norm", "activation_mean_square")
Groups = list[list[int]]  # weights by position, those of one shape, type and device together


@dataclass(frozen=True)
class Watched:
    """The layers and weights of a model that are measured.

    `owners[k]` is the layer that weight `owned[k]` belongs to; a tied weight occurs once for each of its layers.
    `places` are the module that holds each weight, and its name there.
    """

    names: list[str]
    types: list[str]
    weights: list[Tensor]
    places: list[tuple[nn.Module, str]]
    owners: np.ndarray
    owned: np.ndarray
    quantities: tuple[str, ...]

    def groups(self, which: Iterable[int]) -> Groups:
        groups: dict[tuple, list[int]] = {}
        for i in which:
            weight = self.weights[i]
            groups.setdefault((weight.shape, weight.dtype, weight.device), []).append(i)
        return list(groups.values())


    def follow(self) -> bool:
        """Take up what lies in the places of the weights by now; whether anything there was replaced."""
        found = (module._parameters.get(name) for module, name in self.places)
        now = [old if new is None else new for old, new in zip(self.weights, found, strict=True)]
        if all(map(operator.is_, now, self.weights)):
            return False
        self.weights[:] = now
        return True


def watch(call: str, model: nn.Module, quantities: tuple[str, ...]) -> tuple[dict[str, nn.Module], Watched]:
    """The layers by name, and what is measured of them."""
    if not isinstance(model, nn.Module):
        raise RefusalTypeError(f"{call}: `model` must be an nn.Module, got {type(model).__name__}.")
    model = unwrapped(model)
    layers = running(model, layers_of(call, model))
    weights = weights_of(model, layers, layers)
    parameters = dict(model.named_parameters())
    wanted = list(dict.fromkeys(p for names in weights.values() for p in names))
    tensors = [parameters[p] for p in wanted]
    if not any(weight.requires_grad for weight in tensors):
        raise RefusalError(f"{call}: `model` must have trainable weights, got {type(model).__name__} with none. "
                           "Unfreeze what is to be trained first: weight.requires_grad_().")
    if any(weight.device.type == "mps" for weight in tensors):
        raise RefusalError(f"{call}: `model` must be on a device that has float64, got mps. Train on cpu or cuda.")
    pairs = [(layer, wanted.index(p)) for layer, name in enumerate(layers) for p in weights[name]]
    owners, owned = (np.array(column, dtype=int) for column in zip(*pairs, strict=True))
    names = [name.replace("_orig_mod.", "").removesuffix("._orig_mod") for name in layers]
    types = [parametrize.type_before_parametrizations(layer).__name__ for layer in layers.values()]
    places = [(model.get_submodule(path), own) for path, _, own in (name.rpartition(".") for name in wanted)]
    return layers, Watched(names, types, tensors, places, owners, owned, quantities)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def running(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The layers; for one that only holds weights, the nearest module around it that computes with them."""
    inside = {part for module in model.modules() if parametrize.is_parametrized(module)
              for part in module.parametrizations.modules()}
    found = set()
    for name, layer in layers.items():
        if layer._parameters:  # a container without weights is what the model lists as a hidden layer
            while name and (layer in inside or not runs(layer)):
                name = name.rpartition(".")[0]
                layer = model.get_submodule(name)
        found.add(layer)
    return {name: module for name, module in model.named_modules() if module in found}


def runs(layer: nn.Module) -> bool:
    """A list of weights has no forward; nn.MultiheadAttention does not call its output projection, it uses the weights.
    """
    has_forward = type(layer).forward is not nn.Module.forward or "forward" in vars(layer)
    return has_forward and not isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)
