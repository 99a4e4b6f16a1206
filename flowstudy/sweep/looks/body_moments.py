"""A measurement that `run` knows: signals and Jacobians through the body of nets at initialisation, one at a time."""

import pandas as pd

from flowstudy.data import Dataset
from flowstudy.measure.body_moments import body_moments, two_inputs

from .moment import CellsMoment


def body_moments_rows(moment: CellsMoment, data: Dataset, q0: float = 1.0, m0: float = 0.0, c0: float = 0.5,
                      every: int = 1, probes: int = 64) -> pd.DataFrame:
    """`body_moments` of the blocks at initialisation, per `layer` 1..depth - 1, for two inputs of the first block with
    mean square `q0`, mean `m0` and cosine `c0`, drawn by the cell's seed; the data's inputs are not used.

    One net at a time, since wide ones are large; cells that follow each other and differ in gate bias alone share
    their weights, which are drawn once.
    """
    frames = []
    for place, (cell, net) in enumerate(zip(moment.cells, moment.nets(), strict=True)):
        x = two_inputs(cell.width, q0, m0, c0, seed=cell.seed).to(data.x_train.device)
        rows = body_moments(net.blocks, x, every=every, probes=probes, seed=cell.seed)
        frames.append(rows.assign(place=place, q0=q0, m0=m0, c0=c0))
    return pd.concat(frames, ignore_index=True)
