"""The mean mode: the recursion's own derivative, its growth in closed form, and Monte Carlo at finite width."""

import math

import numpy as np
import pytest

import flowstudy as fs
from flowstudy import plots, theory
from flowstudy.predictions import (
    backward_slopes,
    with_predicted_norms,
    with_predicted_slopes,
    with_predicted_spectra,
    with_predicted_statistics,
)
from flowstudy.theory.mean_field.activations import ACTIVATIONS
from flowstudy.theory.mean_field.highway import first_state
from flowstudy.theory.mean_field.mean_mode import MODE, Body, OpenGate, TiltedGate, TiltedMoments, shift_map, walk

LARGEST_Z = 4.5
NETS = [("highway", "relu", -1.0, 1.0), ("highway", "gelu", -2.0, 2.0), ("residual", "relu", 0.0, 2.0),
        ("residual", "gelu", 0.0, 1.0), ("plain", "gelu", 0.0, 2.0), ("highway", "tanh", -1.0, 1.0)]


def recursion(net: str, activation: str, depth: int, gate_bias: float, weight_var: float, **start: float):
    if net == "highway":
        return theory.highway(activation, depth, gate_bias, weight_var, weight_var, **start)
    if net == "residual":
        return theory.residual_net(activation, depth, weight_var, **start)
    return theory.highway(activation, depth, math.inf, weight_var, 0.0, **start)


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "activation", "gate_bias", "weight_var"), NETS)
def test_bulk_is_the_product_of_chi(net, activation, gate_bias, weight_var):
    """Forwards and backwards the bulk's mean square is the recursion's, and of highway nets P too; both ends agree."""
    found = theory.mean_mode(net, activation, 9, gate_bias, weight_var, weight_var, 1.3, 0.2)
    frame = recursion(net, activation, 9, gate_bias, weight_var, q0=1.3, m0=0.2)
    np.testing.assert_allclose(found["log_bulk"], np.log(frame["mean_squared"]), atol=1e-12)
    np.testing.assert_allclose(found["log_bulk_back"], np.log(frame["chi"])[::-1].cumsum()[::-1], atol=1e-12)
    if net == "highway":
        np.testing.assert_allclose(found["P"], frame["P"], rtol=1e-12)
    for part in ("bulk", "mode"):
        assert found[f"log_{part}"].iloc[-1] == pytest.approx(found[f"log_{part}_back"].iloc[0], abs=1e-9)


@pytest.mark.parametrize(("net", "activation", "gate_bias", "weight_var"), NETS)
def test_shifts_are_carried_by_the_recursions_derivative(net, activation, gate_bias, weight_var):
    """(dm' / sqrt q, dq' / q) from (dm / sqrt q, dq / q), by central differences of the recursion itself."""
    q, m, step = 0.7, 0.3, 1e-5

    def after(q0: float, m0: float) -> np.ndarray:
        last = recursion(net, activation, 1, gate_bias, weight_var, q0=q0, m0=m0).iloc[0]
        return np.array([last["m"] / math.sqrt(q), last["q"] / q])

    slow = [(after(q, m + h) - after(q, m - h)) * math.sqrt(q) / (2 * h) for h in (step,)]
    slow += [(after(q + h, m) - after(q - h, m)) * q / (2 * h) for h in (step,)]
    gate = TiltedGate(gate_bias, weight_var * q) if net == "highway" else OpenGate(net)
    values = TiltedMoments(ACTIVATIONS[activation], weight_var * q, q, weight_var, weight_var * q)
    np.testing.assert_allclose(shift_map(gate, values, first_state("test", q, m, 1.0)), np.transpose(slow), atol=1e-7)


def test_the_mode_of_relu_nets_grows_as_their_signal():
    """By q'/q per layer, the limit in closed form: highway nets, and 2.90 of a residual one with He's weights."""
    for gate_bias in (-1.0, -2.0):
        found = theory.mean_mode("highway", "relu", 200, gate_bias, 2.0)["log_mode"].diff().iloc[-1]
        assert found == pytest.approx(math.log(theory.highway_limit("relu", gate_bias, 2.0).length_ratio), abs=1e-6)
    growth = theory.residual_net("relu", 60, 2.0)["q"].pct_change().iloc[-1]
    found = theory.mean_mode("residual", "relu", 60, weight_var=2.0)["log_mode"].diff().iloc[-1]
    assert found == pytest.approx(math.log1p(growth), abs=1e-6)


def test_a_change_along_the_signal_of_a_relu_net_is_carried_exactly():
    """x + relu(W x) is homogeneous: the Jacobian maps x to y, so what dx = x adds to chi |dx|^2 makes it q'."""
    before, step, after = next(walk(Body("residual", ACTIVATIONS["relu"], 0.0, 2.0, 0.0, 0.0),
                                    first_state("test", 1.0, 0.5, 1.0), 1))
    shift = np.array([before.m**2, 2 * before.m, 4.0])  # dm = m, dq = 2 q
    assert after.chi + step[MODE, 3:6] @ shift == pytest.approx(math.exp(after.log_q), rel=1e-12)


def test_nothing_is_made_where_nothing_varies():
    """Closed gates are the identity: no mode, at any depth; and odd activations have none that grows."""
    assert (theory.mean_mode("highway", "relu", 20, -60.0, 2.0)["log_mode"] < -40).all()
    assert (theory.mean_mode("highway", "tanh", 20, -1.0)["log_mode"] == -math.inf).all()


def test_mean_logarithm_of_one_direction_and_many():
    """Without the mode ln bulk; without the bulk ln mode + E ln g^2 = ln mode - gamma - ln 2; both, by Monte Carlo."""
    log_bulk, log_mode = np.array([-3.0, -np.inf, -2000.0]), np.array([-np.inf, 2.0, -1000.0])
    expected = [-3.0, 2.0 - np.euler_gamma - math.log(2), -1000.0 - np.euler_gamma - math.log(2)]
    assert theory.mean_log_square(log_bulk, log_mode) == pytest.approx(expected, abs=1e-9)
    sample = np.log(0.1 + np.random.default_rng(0).standard_normal(400_000) ** 2)
    z = (theory.mean_log_square(np.log([0.1]), np.log([1.0]))[0] - sample.mean()) / sample.std() * math.sqrt(400_000)
    assert abs(z) < LARGEST_Z


@pytest.mark.parametrize(("call", "message"), [
    (lambda: theory.mean_mode("conv", "relu", 3), r"mean_mode: `net` must be one of plain, residual, highway"),
    (lambda: theory.mean_mode("plain", "relu", 0), r"mean_mode: `depth` must be an integer of at least 1"),
    (lambda: theory.mean_mode("plain", "rleu", 3), r"mean_mode: `activation` must be one of"),
])
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- Monte Carlo -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "activation", "gate_bias", "weight_var", "depth"), [
    ("highway", "relu", -1.0, 1.0, 16), ("highway", "gelu", -1.0, 2.0, 10), ("residual", "relu", 0.0, 2.0, 8),
    ("residual", "gelu", 0.0, 2.0, 6)])
def test_mean_square_at_finite_width(net, activation, gate_bias, weight_var, depth):
    """(1/n) tr J J^T at width 40, 200 nets: 4.5 standard errors and the next order, (depth / width)^2 and its like,
    allowed for; without the mode theory is off by more."""
    rng, n, phi = np.random.default_rng(3), 40, ACTIVATIONS[activation]
    squares = []
    for _ in range(200):
        x = rng.standard_normal(n)
        x = (x - x.mean()) / x.std()
        jacobian = np.eye(n)
        for _ in range(depth):
            w, v = rng.standard_normal((2, n, n)) * math.sqrt(weight_var / n)
            h, gate = w @ x, 1 / (1 + np.exp(-v @ x - gate_bias))
            value, slope = phi.value(h), phi.slope(h)
            if net == "highway":
                layer = (np.diag(1 - gate) + (gate * slope)[:, None] * w
                         + (gate * (1 - gate) * (value - x))[:, None] * v)
                x = gate * value + (1 - gate) * x
            else:
                layer, x = np.eye(n) + slope[:, None] * w, x + value
            jacobian = layer @ jacobian
        squares.append((jacobian**2).sum() / n)
    last = theory.mean_mode(net, activation, depth, gate_bias, weight_var, weight_var).iloc[-1]
    bulk, mode = np.exp(last["log_bulk"]), np.exp(last["log_mode"]) / n
    error = np.std(squares) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - bulk - mode) < LARGEST_Z * error + (depth / n) ** 2 * (bulk + mode)
    assert np.mean(squares) - bulk > LARGEST_Z * error


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return lambda cells, **options: fs.run(cells, store=store, device="cpu", progress=False, **options)


@pytest.mark.slow
def test_slopes_of_open_highway_relu_nets(run):
    """Depth 100, width 50, where chi alone is off by more than nine standard errors: |z| < 4.5 with the mode counted;
    a layer's next order, below 1 / (2 width), is allowed for."""
    cells = fs.grid(net="highway", activation="relu", init="glorot_normal", gate_bias=[-1.0, -2.0], depth=100, width=50,
                    seed=range(30))
    flow = run(cells, measure="gradient_flow", samples=1)
    slopes = with_predicted_slopes(backward_slopes(flow), flow)
    assert slopes["valid"].all()
    for _, nets in slopes.groupby("gate_bias"):
        gap, error = nets["slope"].mean() - nets["predicted"].iloc[0], nets["slope"].sem()
        assert abs(gap) < LARGEST_Z * error + 1 / 100
        assert nets["slope"].mean() - nets["limit"].iloc[0] > 2 * LARGEST_Z * error
    weights = "log10_weight_gradient_norm"
    open_gates = flow[flow["gate_bias"] == -1]
    covered = with_predicted_norms(open_gates, weights).groupby("layer")["valid"].first()
    assert not covered[2] and covered[99] and covered.loc[2:].is_monotonic_increasing
    lines = plots.gradient_by_layer(open_gates, weights).axes[0].lines
    assert [np.isfinite(line.get_ydata()[2:-1]).all() for line in lines if line.get_color() == "black"] == [False, True]


def test_statistics_and_spectra_of_nets_with_a_mean_mode(run):
    """Relative variance within 15 % of the measured one, ln mean square within 4.5 errors and a tenth; the first rank
    has no prediction, and the free law is not valid where slopes vary."""
    shared = dict(width=60, depth=9, seed=range(12))
    cells = fs.grid(net="residual", activation=["relu", "gelu"], init="he_normal", **shared)
    cells += fs.grid(net="highway", activation=["relu", "gelu"], init="he_normal", gate_bias=-1.0, **shared)
    spectra = run(cells, measure="jacobian_spectrum", part="body", samples=1)
    flow = run(cells, measure="gradient_flow", samples=1)
    rows = with_predicted_statistics(spectra, flow)
    for (_, _, statistic), nets in rows.groupby(["net", "activation", "statistic"]):
        gap, error = nets["measured"].mean() - nets["predicted"].iloc[0], nets["measured"].sem()
        if statistic == "relative_variance":
            assert abs(gap) < LARGEST_Z * error + 0.15 * nets["predicted"].iloc[0]
        if statistic == "log_mean_square":
            assert abs(gap) < LARGEST_Z * error + 0.1
    law = with_predicted_spectra(spectra, flow)
    assert law.loc[law["rank"] == 1, "predicted"].isna().all() and not law.loc[law["rank"] == 1, "valid"].any()
    assert not law.loc[(law["net"] == "residual") & (law["activation"] == "relu"), "valid"].any()
