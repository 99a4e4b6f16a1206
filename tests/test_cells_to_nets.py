"""Cells to nets: whichever cells stand beside a cell, its net is the one that it describes, alone or in a stack."""

import pytest
import torch
from cases import assert_same

from flowstudy.data import Dataset, load_dataset
from flowstudy.nets import HighwayNet, PlainNet, ResidualNet, initialize
from flowstudy.sweep import Cell, cells_to_nets, grid
from flowstudy.sweep.cells_to_nets import nets_of, stack_of
from flowstudy.sweep.looks.moment import CellsMoment

WEIGHTS = {"width": 5, "depth": 3, "seed": [0, 1], "gain": [None, 0.5], "bias_var": [0.0, 0.3]}
PLANS = {  # the last axis is the one that changes from cell to cell
    "plain": grid(net="plain", **WEIGHTS, learning_rate=[0.1, 0.2]),
    "residual": grid(net="residual", activation="relu", init=["he_normal", "orthogonal"], **WEIGHTS),
    "highway": grid(net="highway", **WEIGHTS, gate_bias=[-1.0, -3.0]),
    "activations": grid(net="highway", init="critical", width=5, depth=3, seed=[0, 1], activation=["tanh", "erf"]),
    "highway, weights change": grid(net="highway", width=5, depth=3, gate_bias=[-1.0, -3.0], seed=[0, 1]),
}
KINDS = {"plain": PlainNet, "highway": HighwayNet, "residual": ResidualNet}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("digits").flat().subset(20)


def by_hand(cell: Cell) -> torch.nn.Module:
    gate = {} if cell.gate_bias is None else {"gate_bias": cell.gate_bias}
    net = KINDS[cell.net](64, cell.width, cell.depth, 10, cell.activation, **gate)
    return initialize(net, cell.init, seed=cell.seed, gain=cell.gain, bias_var=cell.bias_var)


def weights_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("plan", PLANS)
def test_each_net_is_its_cells_own(data, plan):
    """One after the other, in a stack and in any part of a moment: to the last bit the net that is built by hand."""
    cells = PLANS[plan]
    one_by_one = [weights_of(net) for net in nets_of(cells, data, "cpu")]
    stack, part = stack_of(cells, data), CellsMoment(cells, data).part(1, 3)
    for i, cell in enumerate(cells):
        own = weights_of(by_hand(cell))
        assert_same(one_by_one[i], own)
        assert_same(weights_of(stack.net(i)), own)
    for i, net in enumerate(part.nets(), 1):
        assert_same(weights_of(net), weights_of(by_hand(cells[i])))
        assert_same(weights_of(part.stack.net(i - 1)), weights_of(by_hand(cells[i])))


def test_equal_weights_are_drawn_once(data, monkeypatch):
    """Cells that follow each other and differ in gate bias alone cost one draw: wide nets' draws take seconds."""
    draws = []
    monkeypatch.setattr(cells_to_nets, "initialize",
                        lambda *net, **options: draws.append(options["seed"]) or initialize(*net, **options))
    stack_of(grid(net="highway", width=5, depth=3, seed=[0, 1], gate_bias=[-1.0, -2.0, -3.0]), data)
    assert draws == [0, 1]
