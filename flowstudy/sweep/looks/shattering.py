"""Measurements that `run` knows: input gradients of nets at initialisation around a circle, one net at a time."""

import math

import numpy as np
import pandas as pd

from flowstudy.data import Dataset
from flowstudy.measure.shattering import READOUTS, circle, cosine_by_lag, input_gradients

from .moment import CellsMoment

LAGS = 16  # measured, at most: evenly spaced in log


def gradient_correlation_rows(moment: CellsMoment, data: Dataset, points: int = 128) -> pd.DataFrame:
    """Mean cosine `correlation` of the input gradients of two points `lag` steps, so `angle` [rad], apart on the circle
    through the first two training samples, by `readout` (see `measure.shattering`); `hidden_correlation` of the last
    hidden layer's outputs."""
    lags = lags_of(points)
    x, frames = circle(data.x_train[0], data.x_train[1], points), []
    for place, net in enumerate(moment.nets()):
        gradients, hidden = input_gradients(net, x)
        alike = cosine_by_lag(hidden, lags).cpu()
        frames += [pd.DataFrame({"place": place, "readout": readout, "lag": lags,
                                 "angle": 2 * math.pi / points * np.array(lags),
                                 "correlation": cosine_by_lag(at, lags).cpu(), "hidden_correlation": alike})
                   for readout, at in zip(READOUTS, gradients, strict=True)]
    return pd.concat(frames, ignore_index=True)


def gradient_around_circle_rows(moment: CellsMoment, data: Dataset, points: int = 256) -> pd.DataFrame:
    """`gradient` of the net's first output along the circle, d output / d angle by `angle` [rad], in units of its root
    mean square over the points (nan where it is 0 everywhere)."""
    x, frames = circle(data.x_train[0], data.x_train[1], points), []
    forwards = (x.roll(-1, 0) - x.roll(1, 0)) / (2 * math.sin(2 * math.pi / points))  # dx / d angle, exactly
    for place, net in enumerate(moment.nets()):
        gradients, _ = input_gradients(net, x)
        along = (gradients[0] * forwards).sum(1).cpu()
        along = along / along.abs().max()  # its square may underflow
        frames.append(pd.DataFrame({"place": place, "angle": 2 * math.pi / points * np.arange(points),
                                    "gradient": along / along.square().mean().sqrt()}))
    return pd.concat(frames, ignore_index=True)


def lags_of(points: int) -> list[int]:
    quarter, half = points // 4, points // 2  # pi / 2 is among them, where masks of the first layer are independent
    return sorted({*np.geomspace(1, half, LAGS).round().astype(int).tolist(), quarter})
