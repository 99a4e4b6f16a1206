"""Recurrent modules of torch.nn run step by step: the same output, to rounding, and every time step can be seen.

What nn.LSTM, nn.GRU and nn.RNN compute at once is one node of autograd's graph, in which no state can be told from
another.  While a measured copy runs, its recurrent modules run cell by cell, with their own weights, from torch's own
formulas: stacked layers, directions, projections, dropout (from the same random state), initial states and packed
sequences included.  That the two agree is checked in every call of a module, on the first two time steps: on more of
them, the rounding of a chaotic net would grow to be a difference.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function_unary

from flowstudy.measure.models.outputs import is_inside_vmap, numbers_in
from flowstudy.refusal import RefusalError

from .cells import Place, RecurrentCell, State, TimeStep, cells_of, states_of

CHECKED_STEPS = 2
AGREEMENT = 1e6   # largest difference allowed, in eps of the module's dtype times its largest output: far above
#                   rounding, far below a mistake

Seen = Callable[[TimeStep], None]
Sequence = list[Tensor]   # the inputs at each time step, (sample, feature); of a packed sequence, those that still run


def is_steppable(module: nn.Module) -> bool:
    """Whether the module runs torch's own recurrent forward, or ours already; not so a subclass with its own."""
    own = vars(module).get("forward")
    return (isinstance(module, nn.RNNBase) and (own is None or getattr(own, "func", None) is checked_forward)
            and type(module).forward in (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward))


def unread(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """The recurrent modules that are measured at once, time steps unseen: with a forward of their own, or no layer."""
    return [name for name, module in model.named_modules()
            if isinstance(module, nn.RNNBase) and not (is_steppable(module) and name in layers)]


@contextmanager
def unrolled(call: str, modules: Mapping[str, nn.Module],
             seen: Callable[[str, nn.Module, TimeStep], None] | None = None) -> Iterator[None]:
    """While the context lasts, the steppable ones among the modules run step by step; `seen` looks at every step.

    A checkpointed module runs again in the backward pass, which the context must outlast.

    Raises:
        RefusalError: when a module is called that the steps do not agree with.
    """
    steppable = {name: module for name, module in modules.items() if is_steppable(module)}
    for name, module in steppable.items():
        module.forward = partial(checked_forward, call, name, module, seen and partial(seen, name, module))
    try:
        yield
    finally:
        for module in steppable.values():
            vars(module).pop("forward", None)


def checked_forward(call: str, name: str, module: nn.RNNBase, seen: Seen | None, input: Tensor | PackedSequence,
                    hx: object = None) -> tuple[Tensor | PackedSequence, Tensor | State]:
    data = input.data if isinstance(input, PackedSequence) else input
    if has_torch_function_unary(data):   # modes, which look at operations, see one, as of torch's own module
        return handle_torch_function(checked_forward, (data,), call, name, module, seen, input, hx)
    if not is_inside_vmap(data):
        check_agreement(call, name, module, input, hx)
    return unrolled_forward(module, input, hx, seen)


def check_agreement(call: str, name: str, module: nn.RNNBase, input: Tensor | PackedSequence, hx: object) -> None:
    """Compare our steps with the module's own forward, both without dropout: cuDNN draws its masks differently."""
    short, dropout = first_steps(module, input), module.dropout
    module.dropout = 0.0
    try:
        with torch.no_grad():
            own = list(numbers_in(type(module).forward(module, short, hx)))
            ours = list(numbers_in(unrolled_forward(module, short, hx)))
    finally:
        module.dropout = dropout
    for one, other in zip(own, ours, strict=True):
        size = one.abs().max() if one.numel() else one.sum()
        tolerance = AGREEMENT * torch.finfo(one.dtype).eps * size
        if size.isfinite() and not (one - other).abs().max() <= tolerance:
            raise RefusalError(f"{call}: `model` must run {name!r} as {type(module).__name__} does, got other numbers "
                               "from its weights cell by cell. Give its class a forward of its own (def forward(self, "
                               "*args): return super().forward(*args)), and it is measured as it is, as one layer.")


def first_steps(module: nn.RNNBase, input: Tensor | PackedSequence) -> Tensor | PackedSequence:
    if isinstance(input, PackedSequence):
        sizes = input.batch_sizes[:CHECKED_STEPS]
        return PackedSequence(input.data[:int(sizes.sum())], sizes, input.sorted_indices, input.unsorted_indices)
    return input[:, :CHECKED_STEPS] if module.batch_first and input.ndim == 3 else input[:CHECKED_STEPS]


# --- the module's forward, step by step ------------------------------------------------------------------------------


def unrolled_forward(module: nn.RNNBase, input: Tensor | PackedSequence, hx: object = None,
                     seen: Seen | None = None) -> tuple[Tensor | PackedSequence, Tensor | State]:
    """The result of the module's own forward: the outputs of the last layer, and the last states of all layers."""
    sequence, initial = sequence_of(module, input), initial_states(module, input, hx)
    outputs, final = all_layers(module, sequence, initial, seen)
    if isinstance(input, PackedSequence):
        result = PackedSequence(outputs, *input[1:])
        if input.unsorted_indices is not None:
            final = tuple(part[:, input.unsorted_indices] for part in final)
    else:
        result = outputs.view(len(sequence), -1, outputs.shape[-1])
        if input.ndim == 2:
            result, final = result.squeeze(1), tuple(part.squeeze(1) for part in final)
        elif module.batch_first:
            result = result.transpose(0, 1)
    return result, final if module.mode == "LSTM" else final[0]


def sequence_of(module: nn.RNNBase, input: Tensor | PackedSequence) -> Sequence:
    if isinstance(input, PackedSequence):
        return list(input.data.split(input.batch_sizes.tolist()))
    if input.ndim == 2:
        input = input.unsqueeze(1)
    elif module.batch_first:
        input = input.transpose(0, 1)
    return list(input.unbind(0))


def initial_states(module: nn.RNNBase, input: Tensor | PackedSequence, hx: object) -> State:
    """(cell, sample, unit) each, zeros where none are given; in the order of a packed sequence's samples."""
    data, packed = (input.data, True) if isinstance(input, PackedSequence) else (input, False)
    if hx is not None:
        parts = states_of(hx)
        if packed:
            return parts if input.sorted_indices is None else tuple(p[:, input.sorted_indices] for p in parts)
        return tuple(part.unsqueeze(1) for part in parts) if data.ndim == 2 else tuple(parts)
    samples = (int(input.batch_sizes[0]) if packed else 1 if data.ndim == 2
               else len(data) if module.batch_first else data.shape[1])
    cells = module.num_layers * (1 + module.bidirectional)
    widths = (module.proj_size or module.hidden_size, module.hidden_size)
    return tuple(data.new_zeros(cells, samples, width) for width in widths[:1 + (module.mode == "LSTM")])


def all_layers(module: nn.RNNBase, sequence: Sequence, initial: State, seen: Seen | None) -> tuple[Tensor, State]:
    """The last layer's outputs, one time step below the other, and the last states, (cell, sample, unit) each."""
    sizes = [len(x) for x in sequence]
    last: list[State] = []
    by_direction: list[Sequence] = []
    for i, (layer, direction, cell) in enumerate(cells_of(module)):
        outputs, state = one_cell(cell, layer, direction, sequence, tuple(part[i] for part in initial), seen)
        by_direction.append(outputs)
        last.append(state)
        if len(by_direction) == 1 + module.bidirectional:   # all of this layer
            joined = torch.cat([both[0] if len(both) == 1 else torch.cat(both, -1)
                                for both in zip(*by_direction, strict=True)])
            if module.dropout and module.training and layer < module.num_layers:
                joined = F.dropout(joined, module.dropout)
            sequence, by_direction = list(joined.split(sizes)), []
    return joined, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def one_cell(cell: RecurrentCell, layer: int, direction: str, sequence: Sequence, initial: State,
             seen: Seen | None) -> tuple[Sequence, State]:
    """Outputs at every time step, and last states of all samples, for one stacked layer and direction.

    A packed sequence has its longest samples first: forward, samples end, and their states are set aside; backward,
    samples join, with their initial states.
    """
    times = range(len(sequence)) if direction == "forward" else reversed(range(len(sequence)))
    outputs: dict[int, Tensor] = {}
    ended: list[State] = []
    state = initial
    for t in times:
        running = len(sequence[t])
        if not outputs and running < len(state[0]):
            state = tuple(part[:running] for part in state)
        elif running < len(state[0]):
            ended.append(tuple(part[running:] for part in state))
            state = tuple(part[:running] for part in state)
        elif running > len(state[0]):
            state = tuple(torch.cat([part, first[len(part):running]]) for part, first in zip(state, initial,
                                                                                             strict=True))
        before, state = state, cell.step(sequence[t], state)
        outputs[t] = state[0]
        if seen is not None:
            seen(TimeStep(Place(t + 1, direction, layer), cell, sequence[t], before, state))
    if ended:
        state = tuple(torch.cat([*parts]) for parts in zip(state, *reversed(ended), strict=True))
    return [outputs[t] for t in range(len(sequence))], state
