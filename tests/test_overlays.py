"""Theory beside measured frames: predictions of known nets, and the distance in standard errors."""

import math

import numpy as np
import pandas as pd
import pytest

import flowstudy as fs
from flowstudy import plots
from flowstudy.predictions import (
    layer_gains,
    predicted_error_signal,
    predicted_slope,
    weight_var,
    with_predicted_slopes,
)

PLAN = [
    *fs.grid(net="plain", activation="relu", init=["he_normal", "glorot_normal"], depth=[5, 20], width=100,
             seed=range(6)),
    *fs.grid(net="plain", activation="tanh", init="orthogonal", gain=0.9, depth=20, width=100, seed=range(6)),
    *fs.grid(net="highway", activation="tanh", init="glorot_normal", gate_bias=[-3.0, -40.0], depth=20, width=100,
             seed=range(6)),
]


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> pd.DataFrame:
    return fs.run(PLAN, measure="gradient_flow", samples=1, store=tmp_path_factory.mktemp("store"), device="cpu",
                  progress=False)


def test_predictions_of_known_nets(flow):
    """He ReLU 0 and Glorot ReLU ln 1/2 exactly at infinite width; closed gates 0; measured nets within finite width's.

    A layer of width n takes off up to 5 / (2 n) (Hanin & Nica 2018); |z| then counts what is left: below 4.5.
    """
    rows = with_predicted_slopes(plots.backward_slopes(flow), flow)
    assert len(rows) == len(PLAN)
    predicted = rows.groupby(["net", "init", "gate_bias"], dropna=False)["predicted"].first()
    assert predicted["plain", "he_normal"].item() == pytest.approx(0, abs=1e-12)
    assert predicted["plain", "glorot_normal"].item() == pytest.approx(math.log(1 / 2), abs=1e-12)
    assert predicted["highway", "glorot_normal", -40.0] == pytest.approx(0, abs=1e-12)
    assert -0.3 < predicted["highway", "glorot_normal", -3.0] < -0.05
    assert predicted["plain", "orthogonal"].item() < 2 * math.log(0.9)  # tanh's slope is below 1
    for _, nets in rows.groupby(["net", "init", "gate_bias", "depth"], dropna=False):
        gap, error = nets["slope"].mean() - nets["predicted"].iloc[0], nets["slope"].sem()
        assert abs(gap) < 4.5 * error + 5 / 200 + 1e-9
        if error > 1e-9:
            assert nets["z"].iloc[0] == pytest.approx(gap / error)


def test_predicted_slope_is_the_mean_where_layers_are_alike_and_weighs_the_middle_where_not():
    """Equal chi: its logarithm. By hand for two layers' steps: least squares over three points is the mean step."""
    assert predicted_slope(np.full(9, 0.7)) == pytest.approx(math.log(0.7))
    assert predicted_slope(np.array([0.5, 0.25])) == pytest.approx((math.log(0.5) + math.log(0.25)) / 2)
    assert math.isnan(predicted_slope(np.array([])))


def test_predicted_curve_starts_from_the_last_layer_and_has_the_predicted_slope(flow):
    """Glorot ReLU: half the squared norm a layer; in general the least-squares slope of the curve is the prediction."""
    for (_, init), nets in flow[flow["depth"] == 20].groupby(["net", "init"]):
        nets = nets[nets["gate_bias"].isna() | (nets["gate_bias"] == -3)]
        curve = predicted_error_signal(nets)
        last = nets[nets["layer"] == 20]["log10_error_signal_norm"].median()
        assert curve.index.tolist() == list(range(1, 21)) and curve[20] == pytest.approx(last)
        slope = -2 * math.log(10) * np.polyfit(curve.index, curve, 1)[0]
        rows = with_predicted_slopes(plots.backward_slopes(nets), nets)
        assert slope == pytest.approx(rows["predicted"].iloc[0], abs=1e-9)
        if init == "glorot_normal" and nets["net"].iloc[0] == "plain":
            assert curve.diff().dropna().to_numpy() == pytest.approx(math.log10(2) / 2)


def test_schemes_that_theory_cannot_place_have_no_prediction():
    """An unknown scheme or a dead first layer is nan, not a number; a gain replaces the scheme's own."""
    cell = {"net": "plain", "init": "critical", "gain": math.nan, "activation": "tanh", "width": 9, "depth": 4,
            "activation_mean_square": 1.0, "activation_mean": 0.0}
    assert np.isnan(layer_gains(pd.Series(cell))).all() and len(layer_gains(pd.Series(cell))) == 3
    dead = pd.Series(cell | {"init": "he_normal", "activation_mean_square": 0.0})
    assert np.isnan(layer_gains(dead)).all()
    assert weight_var("critical", 3.0, "tanh", 9) == 9.0
    assert weight_var("he_normal", None, "relu", 9) == pytest.approx(2)


def test_slope_figure_draws_the_prediction_dashed(flow):
    """One dashed line per family, through the predicted values; the gap stands in the legend."""
    figure = plots.slope_by_depth(flow)
    relu = figure.axes[0]
    dashed = [line for line in relu.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2
    assert list(dashed[0].get_ydata()) == pytest.approx([0, 0], abs=1e-12)
    assert "±" in relu.get_legend().get_texts()[0].get_text()


# --- the trainability map --------------------------------------------------------------------------------------------


def test_accuracy_is_each_nets_own_share_of_right_answers(tmp_path):
    """After one epoch, of each cell's net trained alone; a net that diverged is nan and leaves its mate alone."""
    cells = fs.grid(net="plain", depth=2, width=9, epochs=1, learning_rate=[0.05, 1e38], train_samples=200)
    frame = fs.run(cells, measure="accuracy", store=tmp_path / "both", device="cpu", progress=False)
    alone = fs.run(cells[:1], measure="accuracy", store=tmp_path / "one", device="cpu", progress=False)
    columns = ["loss", "train_accuracy", "test_accuracy"]
    np.testing.assert_allclose(frame[columns].iloc[0].astype(float), alone[columns].iloc[0].astype(float), rtol=1e-5)
    assert frame[columns].iloc[1].isna().all()
    assert 0.1 < alone["train_accuracy"].item() <= 1
    assert alone["train_accuracy"].item() * 200 == pytest.approx(round(alone["train_accuracy"].item() * 200))


def test_map_draws_the_depth_that_theory_allows():
    """6 xi_c where it is finite, and the depth at which the gate-bias rule gives each bias."""
    grid = pd.DataFrame([{"net": "plain", "activation": "tanh", "width": 9, "dataset": "digits", "epochs": 1,
                          "depth": depth, "gain": variance**0.5, "bias_var": 0.05, "gate_bias": bias,
                          "test_accuracy": accuracy}
                         for depth, accuracy in ((5, 0.9), (50, math.nan)) for variance in (0.5, 1.0, 2.25)
                         for bias in (-5.0, -1.0)])
    figure = plots.trainability_map(grid, "weight_var")
    mesh = figure.axes[0].collections[0].get_array().reshape(2, 3)
    assert mesh[0].tolist() == pytest.approx([0.9] * 3) and mesh[1].tolist() == pytest.approx([0.1] * 3)  # chance
    drawn = dict(zip(*(axis.round(6).tolist() for axis in figure.axes[0].lines[0].get_data()), strict=True))
    assert drawn[2.25] == pytest.approx(6 * 15.1170865, rel=1e-6)  # theory.mean_field, sigma_w = 1.5
    bias, depth = plots.trainability_map(grid, "gate_bias").axes[0].lines[0].get_data()
    assert np.asarray(bias) == pytest.approx(-np.log(2 * (np.asarray(depth) - 1) - 1))
