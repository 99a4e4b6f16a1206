"""From cells to nets: the untrained modules that cells describe."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from flowstudy.data import Dataset
from flowstudy.kinds import KINDS
from flowstudy.nets import initialize
from flowstudy.train import Stack, stack_states

from .cells import Cell

# Nets of one structure that agree in these have the same weights.
WEIGHTS = ("init", "gain", "bias_var", "seed", "activation")


def nets_of(cells: Sequence[Cell], data: Dataset, device: torch.device | str) -> Iterator[nn.Module]:
    """Each cell's net in turn, valid until the next one: one module is changed from cell to cell.

    Building a module costs more than drawing its weights.

    Args:
        cells: of one structure.  Those that follow each other and have the same weights (differing in gate bias, say)
            share one draw.
        data: tells the numbers of features and classes.
    """
    first, drawn = cells[0], None
    net = KINDS[first.net].net(data.x_train.shape[1], first.width, first.depth, data.classes, first.activation)
    net = net.to(device)
    for cell in cells:
        net.set_activation(cell.activation)
        weights = {name: getattr(cell, name) for name in WEIGHTS}
        if weights != drawn:
            initialize(net, cell.init, seed=cell.seed, gain=cell.gain, bias_var=cell.bias_var)
            drawn = weights
        if cell.gate_bias is not None:
            net.set_gate_bias(cell.gate_bias)
        yield net


def stack_of(cells: Sequence[Cell], data: Dataset) -> Stack:
    """All the cells' nets at once, on the data's device."""
    states = []
    for net in nets_of(cells, data, "cpu"):
        states.append({name: value.detach().clone() for name, value in net.named_parameters()})
    stack, names = stack_states(net, states, data.x_train.device), tuple(cell.activation for cell in cells)
    return stack if len(set(names)) == 1 else replace(stack, activations=names)
