"""Gates that a caller names: modules of his own, functions of what they put out, and those of LSTM and GRU."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from torch import Tensor, nn

from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.recurrent.cells import GATES, RecurrentCell, TimeStep, states_of
from flowstudy.measure.models.recurrent.unrolled import is_steppable
from flowstudy.refusal import RefusalError, RefusalTypeError, did_you_mean

from .counted_pass import Gates, GateUse, counted_layers

Given = Mapping[str, nn.Module | str | Callable[[Tensor], Tensor]]
Named = dict[str, tuple[str, Callable | None]]   # by the gate's name: the module's, and the function of its output
CELLS = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}


def check_gates(call: str, model: nn.Module, gates: Given) -> Named:
    """The gates by the caller's names: the name of the module, and the function from its output to the activity."""
    if not isinstance(gates, Mapping) or not gates:
        raise RefusalTypeError(f"{call}: `gates` must be a mapping of names to modules or functions, got "
                               f"{type(gates).__name__}. Pass {{'gate': model.block.gate}}.")
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    found: Named = {}
    for gate, where in gates.items():
        path = names.get(where) if isinstance(where, nn.Module) else where if isinstance(where, str) else gate
        if path not in modules:
            raise RefusalError(f"{call}: `gates` must name modules of the model, got {path or gate!r}."
                               + did_you_mean(path or gate, modules, 3))
        function = where if callable(where) and not isinstance(where, nn.Module) else None
        if not (function or isinstance(where, str | nn.Module)):
            raise RefusalTypeError(f"{call}: `gates` must have modules, their names or functions, got {where!r} for "
                                   f"{gate!r}.")
        if function is None:
            check_has_gates(call, path, modules[path])
        found[gate] = path, function
    return found


def check_has_gates(call: str, name: str, module: nn.Module) -> None:
    """Refuse recurrent modules without gates (nn.RNN), or with other gates than those of nn.LSTM and nn.GRU."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return
    known = module.mode in GATES and is_steppable(module) if isinstance(module, nn.RNNBase) else type(module) in CELLS
    if not known:
        raise RefusalError(f"{call}: `gates` must name recurrent modules with the gates of nn.LSTM or nn.GRU, got "
                           f"{name!r}, a {type(module).__name__}. Name the module inside that puts a gate out.")


def given_gates(call: str, named: Named, model: nn.Module, inputs: Inputs) -> Gates:
    """The activity of each gate in each of its uses, numbered by the last layer whose call had ended before."""
    gates: Gates = {}
    number, calls = 0, dict.fromkeys(named, 0)
    modules = {gate: model.get_submodule(path) for gate, (path, _) in named.items()}

    def ended(now: int) -> None:
        nonlocal number
        number = now

    def note(use: GateUse, t: Tensor) -> None:
        gates[use] = by_unit(call, use, t, len(inputs), modules)

    def stepped(path: str, step: TimeStep) -> None:
        for gate in (gate for gate, (own, function) in named.items() if own == path and function is None):
            for which, t in zip(GATES[step.cell.mode], step.cell.gates(step.x, step.before), strict=True):
                place = step.place
                note(GateUse(number, path, f"{gate}.{which}", place.time, place.direction, place.stack_layer), t)

    def called(gate: str, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        path, function = named[gate]
        calls[gate] += 1
        if function is None and isinstance(module, nn.RNNCellBase):
            for which, t in gates_of_cell(module, *args, **kwargs).items():
                note(GateUse(number, path, f"{gate}.{which}", calls[gate]), t)
        else:
            note(GateUse(number, path, gate, calls[gate]), output if function is None else function(output))

    recurrent = {path: modules[gate] for gate, (path, function) in named.items()
                 if function is None and isinstance(modules[gate], nn.RNNBase)}
    with ExitStack() as stack:
        stack.enter_context(counted_layers(call, model, inputs, ended, recurrent, stepped))
        for gate, module in modules.items():
            if named[gate][0] not in recurrent or named[gate][1] is not None:
                stack.enter_context(module.register_forward_hook(partial(called, gate), with_kwargs=True))
        inputs.call_model(model)
    return gates


def gates_of_cell(cell: nn.LSTMCell | nn.GRUCell, input: Tensor, hx: object = None) -> dict[str, Tensor]:
    mode = CELLS[type(cell)]
    states = states_of(input.new_zeros(len(input), cell.hidden_size) if hx is None else hx)
    weights = RecurrentCell(mode, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    return dict(zip(GATES[mode], weights.gates(input, tuple(states)), strict=True))


def by_unit(call: str, use: GateUse, t: object, samples: int, modules: Mapping[str, nn.Module]) -> Tensor:
    """A gate's activity as (sample, unit): the mean over positions, where a unit or channel has several."""
    if not isinstance(t, Tensor) or t.ndim < 2 or len(t) != samples or not t.is_floating_point():
        got = f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise RefusalError(f"{call}: `gates` must give one tensor (sample, unit), or with positions, for the {samples} "
                           f"samples, got {got} for {use.gate!r}. The first axis of x counts samples (batch_first=True "
                           "in recurrent layers, no packed sequences); name a module or a function that does so too.")
    if (t < 0).any() or (t > 1).any():
        raise RefusalError(f"{call}: `gates` must be activities in [0, 1], got {t.min():.3g} to {t.max():.3g} for "
                           f"{use.gate!r}. Pass a function of its output: {{{use.module!r}: torch.sigmoid}}.")
    t, module = t.detach(), modules.get(use.gate)
    if module is not None and any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules()):
        t = t.movedim(1, -1)
    return t.double().flatten(1, -2).mean(1) if t.ndim > 2 else t.double()
