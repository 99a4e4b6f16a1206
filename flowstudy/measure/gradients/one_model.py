"""One model on one batch: an unchanged forward pass, a backward pass, and the table computed from them."""

import math
from collections.abc import Callable, Container
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from flowstudy.measure.models.backward import Found, Scaled, backward_pass
from flowstudy.measure.models.context import RandomState
from flowstudy.measure.models.copies import check_own_weights
from flowstudy.measure.models.forward import Use, watched_pass
from flowstudy.measure.models.graph import (
    Key,
    check_gradients_can_be_asked_for,
    coarsest,
    edge_of,
    key_of,
    leaves_in,
    reachable,
)
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.layers import (
    is_weight,
    kind_of,
    listed_layers,
    parts_of_own_net,
    positions,
    shared_out,
    weights_of,
)
from flowstudy.measure.models.outputs import numbers_in
from flowstudy.measure.models.path import Point, main_path, normalises
from flowstudy.measure.models.recurrent.bare_loops import bare_loops
from flowstudy.measure.models.recurrent.cells import parameters_of_cell
from flowstudy.measure.models.recurrent.detached import detached_states
from flowstudy.measure.models.recurrent.time_path import recurrences, states_in
from flowstudy.measure.models.recurrent.unrolled import unread, unrolled
from flowstudy.refusal import RefusalError

from .losses import Objective
from .over_time import bare_columns, places_in_time, time_columns
from .statistics import kind_of_gradient, log10_norm, nothing, statistics_of
from .verdict import first_few

REPEATED = 1e-9  # largest relative difference between two passes of one model that is taken for rounding


@dataclass(frozen=True)
class Measured:
    """One model on one batch: the rows, their statistics (layer,), and what belongs to the whole net.

    `path` has the columns of `GradientFlow.path`, `time_paths` those of each recurrence, `bare_paths` those of each
    recurrence without layers.  `unread`, `detached` and `normalises` are as in `GradientFlow`.
    """

    layers: dict[str, list]
    statistics: dict[str, Tensor]
    gradient: list[str]
    path: dict[str, list]
    time_paths: list[dict[str, list]]
    bare_paths: list[dict[str, list]]
    unread: list[str]
    normalises: bool
    log10_input_gradient_norm: Tensor
    loss: Tensor
    dtype: torch.dtype
    repeatable: bool
    detached: dict[str, int]


class Pass(NamedTuple):
    """One forward pass: the input as a leaf, the output, the loss, the uses of layers, and sizes of values by edge."""

    leaf: Tensor | None
    output: object
    loss: Tensor
    uses: list[Use]
    sizes: dict[Key, Tensor]


def measure_model(call: str, model: nn.Module, fresh: Callable[[], nn.Module], inputs: Inputs, y: object,
                  objective: Objective) -> Measured:
    """Everything about a model.

    Args:
        fresh: makes a float64 copy of it; a forward pass may change the copy that it is made with.
    """
    with ExitStack() as steps:
        return measure_copy(call, model, fresh, inputs, y, objective, steps)


def measure_copy(call: str, model: nn.Module, fresh: Callable[[], nn.Module], inputs: Inputs, y: object,
                 objective: Objective, steps: ExitStack) -> Measured:
    """As `measure_model`, with recurrent modules run step by step until `steps` is closed."""
    state = RandomState(inputs.device)
    copied, layers, watched = pass_with_layers(call, fresh, inputs, y, objective, state, steps)
    leaf, output, value, uses, sizes = watched
    nodes = reachable(edge_of(value)) if value.requires_grad else []
    check_gradients_can_be_asked_for(call, nodes)
    check_own_weights(call, model, leaves_in(nodes))
    weights = weights_by_use(copied, layers, uses)
    path = main_path(value, leaf, uses, sizes, len(inputs))
    loops = recurrences(uses, path)
    path = [point for point in path if point.use >= 0 or not loops]   # an input of many steps is no single value
    bare = bare_loops(nodes, uses, loops)
    found, on_path, at_states = errors_of(value, leaf, uses, path, states_in(uses, loops, bare),
                                          trainable_among(copied, weights))
    at_input, like = found.input_gradient, value.detach()
    in_loops = {uses[steps[0]].name for steps in loops}
    repeatable, detached = second_pass(fresh(), inputs, output, state, in_loops)
    return Measured(
        layers=describe(copied, uses, weights, path, len(inputs)),
        statistics=statistics_of(uses, weights, found, like, len(inputs)),
        gradient=[kind_of_gradient([found.gradients.get(name) for name in names]) for names in weights],
        path=path_columns(path, on_path, like),
        time_paths=time_columns(uses, loops, at_states, len(inputs)),
        bare_paths=bare_columns(bare, sizes, at_states, len(inputs)),
        unread=unread(copied, layers),
        normalises=normalises(nodes, uses),
        log10_input_gradient_norm=log10_norm([at_input], 0) if at_input else nothing(like),
        loss=like,
        dtype=coarsest(nodes) if nodes else value.dtype,
        repeatable=repeatable,
        detached=detached,
    )


def errors_of(value: Tensor, leaf: Tensor | None, uses: list[Use], path: list[Point], states: list[GradientEdge],
              leaves: dict[str, Tensor]) -> tuple[Found, list[Scaled | None], dict[Key, Scaled | None]]:
    """One backward pass: gradients and error signals of the uses, of the values on the path, and of loop states."""
    start = None if leaf is None else edge_of(leaf)
    found = backward_pass(value, start, [*(part.edge for part in (*uses, *path)), *states], leaves)
    of_uses, behind = found.errors[:len(uses)], found.errors[len(uses):]
    at_states = zip(map(key_of, states), behind[len(path):], strict=True)
    return replace(found, errors=of_uses), behind[:len(path)], dict(at_states)


def second_pass(copied: nn.Module, inputs: Inputs, output: object, state: RandomState,
                in_loops: Container[str]) -> tuple[bool, dict[str, int]]:
    """Run a fresh copy from the same random state: is the output the same to rounding, and which states are detached?

    flowstudy's own nets need no second pass.

    Args:
        in_loops: names of the layers that run in loops.
    """
    if parts_of_own_net(copied) is not None:
        return True, {}
    looping = {name: module for name, module in copied.named_modules() if name in in_loops}
    with state.replayed(), unrolled("gradient_flow", dict(copied.named_modules())):
        again, detached = detached_states(looping, lambda: inputs.with_leaf()[1].call_model(copied))
    pairs = zip(numbers_in(output), numbers_in(again), strict=False)
    return all(one.shape == other.shape and torch.allclose(one, other, rtol=REPEATED, atol=0.0, equal_nan=True)
               for one, other in pairs), detached


def one_pass(call: str, copied: nn.Module, inputs: Inputs, y: object, objective: Objective,
             layers: dict[str, nn.Module], loose: dict[str, Tensor], state: RandomState, steps: ExitStack) -> Pass:
    """One forward pass, and the loss."""
    leaf, shown = inputs.with_leaf()
    with state.replayed():
        output, uses, sizes = watched_pass(call, copied, shown, layers, loose, steps)
    taken = objective.taken(output, y)
    objective.check(taken, y)
    return Pass(leaf, output, objective.value(taken, y), uses, sizes)


def pass_with_layers(call: str, fresh: Callable[[], nn.Module], inputs: Inputs, y: object, objective: Objective,
                     state: RandomState, steps: ExitStack) -> tuple[nn.Module, dict[str, nn.Module], Pass]:
    """The copy, its layers, and one pass in which every weight that the loss depends on belongs to a layer's use."""
    copied = fresh()
    layers, loose = shared_out(copied)
    if not layers and not loose:
        raise RefusalError(f"{call}: `model` must have layers with weights, got {type(copied).__name__} without any.")
    found = one_pass(call, copied, inputs, y, objective, layers, loose, state, steps)
    if missed := weights_missed(copied, layers, loose, found.uses, found.loss):
        copied = fresh()   # they are used, but not by calls of their modules: each use of them is a layer
        layers, loose = shared_out(copied)
        parameters = dict(copied.named_parameters())
        loose |= {name: parameters[name] for name in missed}
        found = one_pass(call, copied, inputs, y, objective, layers, loose, state, steps)
    if not found.uses:
        names = first_few([repr(name) for name in (*layers, *loose)])
        raise RefusalError(f"{call}: `model` must use its weights, got {type(copied).__name__}, whose forward is seen "
                           f"to use none of {names}. Use them outside of torch.func.vmap; where there is a "
                           "`hidden_layers`, let it list modules that are called.")
    return copied, layers, found


def weights_missed(copied: nn.Module, layers: dict[str, nn.Module], loose: dict[str, Tensor], uses: list[Use],
                   value: Tensor) -> list[str]:
    """Weights that the loss depends on but no use of a layer owns."""
    if not value.requires_grad or listed_layers(copied):
        return []
    called = {use.name for use in uses if use.module is not None}
    owned = {name for names in weights_of(copied, layers, called).values() for name in names} | set(loose)
    seen = leaves_in(reachable(edge_of(value)))
    return [name for name, p in copied.named_parameters() if id(p) in seen and name not in owned
            and is_weight(name, p.ndim)]


def weights_by_use(copied: nn.Module, layers: dict[str, nn.Module], uses: list[Use]) -> list[list[str]]:
    owned = weights_of(copied, layers, {use.name for use in uses if use.module is not None})
    loose = {name for use in uses for name in use.weights}
    first = {id(p): name for name, p in copied.named_parameters()}

    def of(use: Use) -> list[str]:
        if use.module is None:
            return list(use.weights)
        if use.place is not None:
            own = parameters_of_cell(use.module, use.place.cell)
            return list(dict.fromkeys(first[id(p)] for name, p in own.items() if is_weight(name, p.ndim)))
        return [name for name in owned[use.name] if name not in loose]

    return [of(use) for use in uses]


def trainable_among(copied: nn.Module, weights: list[list[str]]) -> dict[str, Tensor]:
    wanted = {name for names in weights for name in names}
    return {name: p for name, p in copied.named_parameters() if name in wanted and p.requires_grad}


def describe(copied: nn.Module, uses: list[Use], weights: list[list[str]], path: list[Point],
             samples: int) -> dict[str, list]:
    """The columns that say which layer is which."""
    parameters = dict(copied.named_parameters(remove_duplicate=False))
    main = {point.use for point in path if point.own}

    def size(use: Use) -> int:
        if use.place is not None:
            own = parameters_of_cell(use.module, use.place.cell).values()
        else:
            own = use.module.parameters() if use.module is not None else (parameters[name] for name in use.weights)
        return sum(p.numel() for p in own)

    return {
        "layer": list(range(1, len(uses) + 1)),
        "module": [use.name for use in uses],
        "type": ["Parameter" if use.module is None else kind_of(use.module) for use in uses],
        "parameters": [size(use) for use in uses],
        "positions": [positions(use.module, use.shape, samples) for use in uses],
        "trainable": [any(parameters[name].requires_grad for name in names) for names in weights],
        "main_path": [i in main for i in range(len(uses))],
        "weight_zero_fraction": [zero_fraction([parameters[name] for name in names]) for names in weights],
    } | places_in_time(uses)


def zero_fraction(weights: list[nn.Parameter]) -> float:
    entries = sum(weight.numel() for weight in weights)
    return sum((weight == 0).sum().item() for weight in weights) / entries if entries else math.nan


def path_columns(path: list[Point], errors: list[Scaled | None], like: Tensor) -> dict[str, list]:
    """The columns of `GradientFlow.path`, a row per point of the main path."""
    norms = [nothing(like) if error is None else log10_norm([error], 0) for error in errors]
    return {
        "layer": [point.use + 1 for point in path],
        "log10_error_signal_norm": [norm.item() for norm in norms],
        "activation_mean_square": [math.nan if point.mean_square is None else point.mean_square.item()
                                   for point in path],
        "averaged_positions": [point.averaged / path[-1].averaged for point in path],
        "own": [point.own for point in path],
    }
