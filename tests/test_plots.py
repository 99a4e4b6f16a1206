"""What is drawn is what the frame says; files are whole and reproducible."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from flowstudy import HighwayNet, gradient_flow, plots
from flowstudy.plots.message import caption_of, message_of
from flowstudy.predictions import backward_slopes


def gradient_frame(cells: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame([{"cell": cell, "layer": layer, "log10_error_signal_norm": norm}
                         for cell, norms in cells.items() for layer, norm in enumerate(norms, 1)])


def test_backward_slope_is_the_least_squares_slope_towards_the_input():
    """numpy's polyfit net by net, on random norms; a layer at exactly zero is left out."""
    rng = np.random.default_rng(0)
    cells = {name: list(rng.normal(size=7)) for name in "abc"}
    cells["b"][3] = -math.inf
    slopes = backward_slopes(gradient_frame(cells)).set_index("cell")["slope"]
    for name, norms in cells.items():
        layers, values = np.arange(1, 8), 2 * math.log(10) * np.array(norms)
        kept = np.isfinite(values)
        assert slopes[name] == pytest.approx(-np.polyfit(layers[kept], values[kept], 1)[0], abs=1e-12)


def test_a_nets_slope_in_frames_is_the_one_that_its_flow_has():
    """Where all layers have as many positions, which is what frames of plans hold."""
    net = HighwayNet(in_features=5, width=8, depth=6, out_features=3)
    flow = gradient_flow(net, torch.randn(4, 5), torch.arange(4) % 3)
    assert backward_slopes(flow.frame.assign(cell="a"))["slope"].item() == pytest.approx(flow.slope, rel=1e-12)


def test_halving_the_mean_square_per_layer_has_slope_minus_ln_2():
    """Worked by hand: ||e_l||^2 = 2^(l - L)."""
    frame = gradient_frame({"a": [0.5 * (layer - 4) * math.log10(2) for layer in (1, 2, 3, 4)]})
    assert backward_slopes(frame)["slope"].item() == pytest.approx(-math.log(2), abs=1e-12)


def loss_frame(losses: dict[str, list[float]], net: str = "plain") -> pd.DataFrame:
    common = {"net": net, "depth": 10, "dataset": "digits"}
    return pd.DataFrame([common | {"cell": cell, "epoch": epoch, "loss": loss, "learning_rate": 0.1 * run}
                         for run, (cell, curve) in enumerate(losses.items(), 1) for epoch, loss in enumerate(curve)])


def test_figure_1_draws_the_run_with_the_lowest_final_loss():
    """Not the one that was lowest on the way, and not one that diverged; what was searched stands below it."""
    plain = loss_frame({"early": [2.3, 0.01, 1.0], "best": [2.3, 1.0, 0.5], "diverged": [2.3, 0.1, math.nan]})
    figure = plots.figure_1(pd.concat([plain, loss_frame({"h": [2.3, 0.4, 0.2]}, "highway")]), top=2)
    assert list(figure.axes[1].lines[0].get_ydata()) == [2.3, 1.0, 0.5]
    searched = "plain: 3 runs a depth, learning rates 0.1 to 0.3; highway: 1 runs a depth, learning rates 0.1 to 0.1"
    assert searched in caption_of(figure)
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.75]  # mean of the best two
    assert message_of(figure) == ("At 10 layers the best highway nets reach a training loss of 0.2, the best plain "
                                  "nets one that is 3.8 times as large.")
    figure = plots.figure_1(pd.concat([plain, loss_frame({"h": [2.3, 0.4, 0.2]}, "highway")]), top=3)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([(0.5 + 1.0 + math.log(10)) / 3])  # diverged: chance


def test_saved_files_are_whole_and_the_same_every_time(tmp_path):
    """Bytes, so that a resumed run can be compared with an uninterrupted one; no temporary file is left."""
    for folder in ("one", "two"):
        figure = plots.figure_1(pd.concat([loss_frame({"a": [2.3, 1.0]}), loss_frame({"h": [2.3, 0.4]}, "highway")]))
        assert isinstance(figure, Figure)
        plots.save({"figure": figure}, {"data": loss_frame({"a": [2.3, 1.0]})}, tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["data.csv", "data.parquet", "figure.pdf", "figure.png", "figure.svg"]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
