"""Gradient flow of a stack of nets: flowstudy's own together, layer by layer; others one by one."""

import copy
import functools

import torch
from torch import Tensor, nn

from flowstudy.arguments import optional, takes
from flowstudy.measure.models.backward import backward_pass
from flowstudy.measure.models.context import in_own_context
from flowstudy.measure.models.copies import float64_copy
from flowstudy.measure.models.forward import Use, activation_statistics
from flowstudy.measure.models.graph import edge_of
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.layers import layers_of, parts_of_own_net, weights_of
from flowstudy.measure.models.precision.attempts import in_float64, measured_targets
from flowstudy.torch_arguments import TENSOR, some_tensors

from .losses import Loss, Objective
from .one_model import measure_model
from .statistics import log10_norm, statistics_of


@takes(state=some_tensors, x=TENSOR, y=optional(TENSOR))
@in_own_context
@in_float64
def stacked_gradient_flow(model: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor | None, *,
                          loss: str | Loss = "cross_entropy") -> dict[str, Tensor]:
    """The statistics of every net of a stack, (net, layer) each; `model` is one of them, the template.

    Equal to `gradient_flow` of each net alone.  flowstudy's own nets are measured together, others one by one.

    Args:
        model: a module of the stack's structure; its own weights do not matter.
        state: parameters by name, stacked along a leading net axis.
        x: inputs (sample, ...) and y labels (sample,), shared by the nets.
    Returns:
        By name, and `log10_input_gradient_norm`, (net,).
    """
    call = "gradient_flow"
    copied = float64_copy(call, model)
    objective = Objective.measured(call, loss)
    parts = parts_of_own_net(copied)
    if parts is None:
        return stacked_one_by_one(call, copied, state, x, y, objective)
    objective.check(copied(x[:1].double()), None if y is None else y[:1])
    weights = weights_of(copied, layers_of(call, copied), layers_of(call, copied))
    wanted = {name for names in weights.values() for name in names}
    state = {name: value.detach().double().requires_grad_(name in wanted) for name, value in state.items()}
    output, uses, leaf = stacked_pass(parts, copied, state, x.double())
    value = torch.func.vmap(lambda own: objective.value(own, y), randomness="same")(output)
    found = backward_pass(value, edge_of(leaf), [use.edge for use in uses], {name: state[name] for name in wanted})
    statistics = statistics_of(uses, [weights[use.name] for use in uses], found, value.detach(), len(x))
    return statistics | {"log10_input_gradient_norm": log10_norm([found.input_gradient], 1)}


def stacked_one_by_one(call: str, copied: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor | None,
                       objective: Objective) -> dict[str, Tensor]:
    nets = len(next(iter(state.values())))
    rows: list[dict[str, Tensor]] = []
    for i in range(nets):
        copied.load_state_dict({name: value[i].double() for name, value in state.items()}, strict=False)
        copied.requires_grad_()
        measured = measure_model(call, copied, functools.partial(copy.deepcopy, copied), Inputs.of(x).measured(copied),
                                 measured_targets(copied, y), objective)
        rows.append(measured.statistics | {"log10_input_gradient_norm": measured.log10_input_gradient_norm})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def stacked_pass(parts: list[nn.Module], model: nn.Module, state: dict[str, Tensor], x: Tensor,
                 ) -> tuple[Tensor, list[Use], Tensor]:
    """All nets of a stack, layer by layer: the outputs, each hidden layer's use, and the inputs as a leaf."""
    names = {module: name for name, module in model.named_modules()}
    nets = len(next(iter(state.values())))
    leaf = x.expand(nets, *x.shape).clone().requires_grad_()
    h, uses = leaf, []
    for part in parts:
        prefix = f"{names[part]}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        apply = functools.partial(torch.func.functional_call, part)
        h = torch.func.vmap(lambda own, h, apply=apply: apply(own, (h,)))(own, h)
        with torch.no_grad():
            statistics = activation_statistics(h.detach(), 1, len(x))
        uses.append(Use(names[part], part, (), h.shape[1:], edge_of(h), statistics))
    return h, uses[:-1], leaf
