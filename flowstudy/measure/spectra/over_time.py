"""The Jacobian along time: of a recurrent module's last state with respect to its initial one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from flowstudy.measure.models.context import RandomState
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.recurrent.cells import cells_of
from flowstudy.measure.models.recurrent.unrolled import initial_states, is_steppable, sequence_of
from flowstudy.refusal import RefusalError

Call = tuple[Tensor, object]   # the input sequence and the initial states


class OverTime(nn.Module):
    """The last state as a function of the initial one, (sample, states) each; the inputs are constants.

    A state is that of all stacked layers, h before c; it alone carries everything on from one time step to the next,
    so that the product route has a factor for each.  A backward cell's steps begin at the last input.
    """

    def __init__(self, module: nn.RNNBase, sequence: list[Tensor]):
        super().__init__()
        self.module, self.sequence = module, sequence

    def part(self, chosen: slice) -> "OverTime":
        """The same function for some of the samples."""
        return OverTime(self.module, [x[chosen] for x in self.sequence])

    def forward(self, state: Float[Tensor, "sample states"]) -> Float[Tensor, "sample states"]:
        cells, module = list(cells_of(self.module)), self.module
        widths = [module.proj_size or module.hidden_size, module.hidden_size][:1 + (module.mode == "LSTM")]
        for inputs in zip(self.sequence, reversed(self.sequence), strict=True):
            apart = state.split(widths * len(cells), -1) if len(cells) * len(widths) > 1 else [state]
            parts, after, h = iter(apart), [], inputs[0]
            for layer, direction, cell in cells:
                if layer > 1 and module.training:
                    h = F.dropout(h, module.dropout)
                own = tuple(next(parts) for _ in widths)
                after += cell.step(inputs[1] if direction == "backward" else h, own)
                h = after[-len(widths)]
            state = torch.cat(after, -1) if len(after) > 1 else after[0]
        return state


def over_time(call: str, model: nn.Module, inputs: Inputs, state: RandomState,
              samples: int) -> tuple[OverTime, Tensor]:
    """The model's one recurrent module, from the call that it has in a pass of the model; and its initial states.

    Args:
        samples: of the module's batch, at most so many.
    """
    name, module = the_recurrent_module(call, model)
    input, hx = call_of(call, model, name, module, inputs, state)
    initial = initial_states(module, input, hx)
    for own, p in module.named_parameters():
        p.requires_grad_("weight_hh" in own)   # the one that carries states: a factor of the product is told by it
    sequence = [part[:samples].detach() for part in sequence_of(module, input)]
    states = torch.cat([part[i] for i in range(len(initial[0])) for part in initial], -1)
    return OverTime(module, sequence), states[:samples].detach()


def the_recurrent_module(call: str, model: nn.Module) -> tuple[str, nn.RNNBase]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.RNNBase)}
    if len(found) != 1 or not is_steppable(module := next(iter(found.values()))):
        got = ", ".join(map(repr, found)) or "none"
        raise RefusalError(f"{call}: part='time' needs a model with one nn.LSTM, nn.GRU or nn.RNN that runs as torch's "
                           f"does, got {got}. Pass the module itself, with its input.")
    if module.bidirectional and module.num_layers > 1:
        raise RefusalError(f"{call}: part='time' needs a state that carries everything on from step to step, got "
                           "stacked layers in both directions, each of which reads all time steps of the one below. "
                           "Pass one layer as its own module.")
    return next(iter(found)), module


def call_of(call: str, model: nn.Module, name: str, module: nn.RNNBase, inputs: Inputs, state: RandomState) -> Call:
    """The arguments with which a pass of the model calls the module."""
    calls: list[Call] = []

    def note(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
        calls.append((given["input"], given.get("hx")))

    with module.register_forward_pre_hook(note, with_kwargs=True), state.replayed(), torch.no_grad():
        inputs.call_model(model)
    if len(calls) != 1 or isinstance(calls[0][0], PackedSequence):
        got = f"called {len(calls)} times" if len(calls) != 1 else "called with a packed sequence"
        raise RefusalError(f"{call}: part='time' needs a recurrent module that is called once, with sequences of one "
                           f"length, got {name!r}, {got}. Pass the module itself, with such an input.")
    return calls[0]
