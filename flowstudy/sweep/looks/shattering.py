"""Measurements that `run` knows: input gradients of nets at initialisation around a circle, one net at a time."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from flowstudy.data import Dataset
from flowstudy.kinds import KINDS
from flowstudy.measure.shattering import READOUTS, circle, cosine_by_lag, input_gradients
from flowstudy.nets import initialize
from flowstudy.sweep.cells import Cell

LAGS = 16  # measured, at most: evenly spaced in log


def gradient_correlation_rows(cells: Sequence[Cell], data: Dataset, tick: Callable[[int], object],
                              points: int = 128) -> pd.DataFrame:
    """Mean cosine `correlation` of the input gradients of two points `lag` steps, so `angle` [rad], apart on the circle
    through the first two training samples, by `readout` (see `measure.shattering`); `hidden_correlation` of the last
    hidden layer's outputs."""
    lags = lags_of(points)
    frames = []
    for i, (net, x) in enumerate(nets_and_circles(cells, data, points)):
        gradients, hidden = input_gradients(net, x)
        alike = cosine_by_lag(hidden, lags).cpu()
        frames += [pd.DataFrame({"cell": i, "readout": readout, "lag": lags,
                                 "angle": 2 * math.pi / points * np.array(lags),
                                 "correlation": cosine_by_lag(at, lags).cpu(), "hidden_correlation": alike})
                   for readout, at in zip(READOUTS, gradients, strict=True)]
    return pd.concat(frames, ignore_index=True)


def gradient_around_circle_rows(cells: Sequence[Cell], data: Dataset, tick: Callable[[int], object],
                                points: int = 256) -> pd.DataFrame:
    """`gradient` of the net's first output along the circle, d output / d angle by `angle` [rad], in units of its root
    mean square over the points (nan where it is 0 everywhere)."""
    frames = []
    for i, (net, x) in enumerate(nets_and_circles(cells, data, points)):
        gradients, _ = input_gradients(net, x)
        forwards = (x.roll(-1, 0) - x.roll(1, 0)) / (2 * math.sin(2 * math.pi / points))  # dx / d angle, exactly
        along = (gradients[0] * forwards).sum(1).cpu()
        along = along / along.abs().max()  # its square may underflow
        frames.append(pd.DataFrame({"cell": i, "angle": 2 * math.pi / points * np.arange(points),
                                    "gradient": along / along.square().mean().sqrt()}))
    return pd.concat(frames, ignore_index=True)


def lags_of(points: int) -> list[int]:
    if not isinstance(points, int | np.integer) or points < 4:
        raise ValueError(f"run: `points` must be an integer of at least 4, got {points!r}.")
    quarter, half = points // 4, points // 2  # pi / 2 is among them, where masks of the first layer are independent
    return sorted({*np.geomspace(1, half, LAGS).round().astype(int).tolist(), quarter})


def nets_and_circles(cells: Sequence[Cell], data: Dataset, points: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Every cell's net as it starts, and the inputs; the net is valid until the next."""
    for cell in cells:
        if cell.epochs:
            raise ValueError(f"run: `epochs` must be 0 to measure input gradients, got {cell.epochs}. Leave it out.")
    first, x = cells[0], data.x_train  # a group's cells have one structure
    net = KINDS[first.net].net(x.shape[1], first.width, first.depth, data.classes, first.activation).to(x.device)
    around = circle(x[0], x[1], points)
    for cell in cells:
        if cell.gate_bias is not None:
            net.set_gate_bias(cell.gate_bias)
        yield initialize(net, cell.init, seed=cell.seed, gain=cell.gain, bias_var=cell.bias_var), around
