"""A measurement that `run` knows: signals and Jacobians through the body of nets at initialisation, one at a time."""

from collections.abc import Callable, Sequence

import pandas as pd

from flowstudy.data import Dataset
from flowstudy.kinds import KINDS
from flowstudy.measure.body_moments import body_moments, two_inputs
from flowstudy.nets import initialize
from flowstudy.sweep.cells import Cell

WEIGHTS = ("init", "gain", "bias_var", "seed")  # nets of one structure that agree in these have the same weights


def body_moments_rows(cells: Sequence[Cell], data: Dataset, tick: Callable[[int], object], q0: float = 1.0,
                      m0: float = 0.0, c0: float = 0.5, every: int = 1, probes: int = 64) -> pd.DataFrame:
    """`body_moments` of the blocks at initialisation, per `layer` 1..depth - 1, for two inputs of the first block with
    mean square `q0`, mean `m0` and cosine `c0`, drawn by the cell's seed; the data's inputs are not used.

    One net at a time, since wide ones are large; cells that follow each other and differ in gate bias alone share
    their weights, which are drawn once.
    """
    for cell in cells:
        if cell.epochs:
            raise ValueError(f"run: `epochs` must be 0 to measure body_moments, got {cell.epochs}. Leave it out.")
    first, place = cells[0], data.x_train.device
    net = KINDS[first.net].net(data.x_train.shape[1], first.width, first.depth, data.classes, first.activation)
    net = net.to(place)
    frames, drawn = [], None
    for i, cell in enumerate(cells):
        weights = {name: getattr(cell, name) for name in WEIGHTS}
        if weights != drawn:
            initialize(net, cell.init, seed=cell.seed, gain=cell.gain, bias_var=cell.bias_var)
            drawn = weights
        if cell.gate_bias is not None:
            net.set_gate_bias(cell.gate_bias)
        x = two_inputs(cell.width, q0, m0, c0, seed=cell.seed).to(place)
        rows = body_moments(net.blocks, x, every=every, probes=probes, seed=cell.seed)
        frames.append(rows.assign(cell=i, q0=q0, m0=m0, c0=c0))
    return pd.concat(frames, ignore_index=True)
