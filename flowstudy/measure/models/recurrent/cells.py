"""One time step of nn.LSTM, nn.GRU and nn.RNN: gates and next state, from the weights that torch keeps for it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]   # (h,), of an LSTM (h, c); (sample, unit) each
DIRECTIONS = "forward", "backward"
OF_A_CELL = re.compile(r"_l(\d+)(_reverse)?(?=$|[._])")   # in weight_ih_l0, weight_hh_l1_reverse, weight_hh_l0_g
GATES = {"LSTM": ("input", "forget", "output"), "GRU": ("reset", "update")}


@dataclass(frozen=True)
class Place:
    """Where in a recurrent module a cell acts.

    Attributes:
        time: step of the input sequence, from 1.
        direction: "forward" or "backward".
        stack_layer: 1 is next to the input.
    """

    time: int
    direction: str
    stack_layer: int

    @property
    def cell(self) -> tuple[int, str]:
        """Key of the cell, whose weights all of its time steps share."""
        return self.stack_layer, self.direction


@dataclass(frozen=True)
class RecurrentCell:
    """The weights of one stacked layer and direction; of a single cell (nn.LSTMCell), its own.

    Attributes:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        into, back: (gates * unit, feature) and (gates * unit, state): from the input and from the state before.
        into_bias, back_bias: None without.
        out: (projected, unit), what a projecting LSTM multiplies its output by; else None.
    """

    mode: str
    into: Tensor
    back: Tensor
    into_bias: Tensor | None
    back_bias: Tensor | None
    out: Tensor | None = None

    def preactivations(self, x: Tensor, h: Tensor) -> tuple[Float[Tensor, "sample gates"], ...]:
        return F.linear(x, self.into, self.into_bias), F.linear(h, self.back, self.back_bias)

    def gates(self, x: Tensor, state: State) -> tuple[Float[Tensor, "sample unit"], ...]:
        """The activities in [0, 1] of the gates that GATES names for this mode, in that order."""
        added = sum(self.preactivations(x, state[0]))
        if self.mode == "LSTM":
            i, f, _, o = added.chunk(4, -1)
            return i.sigmoid(), f.sigmoid(), o.sigmoid()
        reset, update, _ = added.chunk(3, -1)
        return reset.sigmoid(), update.sigmoid()

    def step(self, x: Tensor, state: State) -> State:
        """The next state.

        Source: the formulas in the documentation of torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN.
        """
        from_x, from_h = self.preactivations(x, state[0])
        if self.mode == "LSTM":
            i, f, g, o = (from_x + from_h).chunk(4, -1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return (h if self.out is None else F.linear(h, self.out)), c
        if self.mode == "GRU":
            (r, z, n), (r_h, z_h, n_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
            update = (z + z_h).sigmoid()
            new = (n + (r + r_h).sigmoid() * n_h).tanh()
            return (new + update * (state[0] - new),)
        return (torch.tanh(from_x + from_h) if self.mode == "RNN_TANH" else torch.relu(from_x + from_h),)


@dataclass(frozen=True)
class TimeStep:
    """One cell at one time step: where, its input (sample, feature), and the states before and after."""

    place: Place
    cell: RecurrentCell
    x: Tensor
    before: State
    state: State


def cells_of(module: nn.RNNBase) -> Iterator[tuple[int, str, RecurrentCell]]:
    """Stacked layer, direction and weights, in the order of execution; the tensors that the module itself runs with."""
    module._update_flat_weights()
    names = module._all_weights
    flat = iter(module._flat_weights)
    for i, own in enumerate(names):
        weights = [next(flat) for _ in own]
        biases = weights[2:4] if module.bias else [None, None]
        cell = RecurrentCell(module.mode, *weights[:2], *biases, weights[-1] if module.proj_size else None)
        directions = DIRECTIONS[:1 + module.bidirectional]
        yield i // len(directions) + 1, directions[i % len(directions)], cell


def parameters_of_cell(module: nn.RNNBase, cell: tuple[int, str]) -> dict[str, nn.Parameter]:
    """The parameters of one stacked layer and direction, by their names in the module; parts of a parametrized one."""
    return {name: p for name, p in module.named_parameters(remove_duplicate=False) if cell_named(name) == cell}


def cell_named(name: str) -> tuple[int, str] | None:
    found = OF_A_CELL.search(name)
    return None if found is None else (int(found[1]) + 1, DIRECTIONS[found[2] is not None])


def states_of(hx: object) -> Sequence[Tensor]:
    """Initial or last states as a module takes and gives them: one tensor, or of an LSTM a pair."""
    return hx if isinstance(hx, tuple) else (hx,)
