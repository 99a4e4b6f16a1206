"""Input gradients around a circle: exact where the answer is known, as theory predicts where nets are wide."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from cases import assert_same, batch, build, fingerprint
from torch.testing import assert_close

import flowstudy as fs
from flowstudy import plots
from flowstudy.measure.shattering import READOUTS, circle, cosine_by_lag, input_gradients
from flowstudy.nets import HighwayNet, PlainNet, ResidualNet, initialize
from flowstudy.plots.message import caption_of, number
from flowstudy.predictions.shattering import with_predicted_correlations


def around(points: int, features: int = 12) -> torch.Tensor:
    a, b = torch.randn(2, features, generator=torch.Generator().manual_seed(0))
    return circle(a, b, points)


# --- measured --------------------------------------------------------------------------------------------------------


def test_circle_has_the_cosines_it_says():
    """Mean square 1, cosine cos(angle) for every pair, the first point along the first input."""
    x = around(16)
    angle = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    assert_close(x @ x.T / 12, (angle[:, None] - angle).cos(), rtol=0, atol=1e-14)
    a = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))[0]
    assert torch.nn.functional.cosine_similarity(x[0], a.double(), dim=0).item() == pytest.approx(1, abs=1e-14)
    with pytest.raises(ValueError, match=r"^circle: `b` must not be parallel to `a`"):
        circle(a, -2 * a, 8)


@pytest.mark.parametrize("name", ["PlainNet-relu-L9", "HighwayNet-tanh-L9", "ResidualNet-relu-L9", "PlainNet-tanh-L1"])
def test_gradients_are_those_of_one_point_at_a_time(name):
    """A slow twin: autograd of the first output, point by point; centred, the chain rule without the shared part."""
    net, x = build(name, scheme="glorot_normal").double(), batch()[0].double()
    gradients, hidden = input_gradients(net, x)
    shared = hidden.mean(0) / hidden.mean(0).norm()
    for i, point in enumerate(x):
        leaf = point.clone().requires_grad_()
        assert_close(gradients[0, i], torch.autograd.grad(net(leaf)[0], leaf)[0], rtol=1e-12, atol=1e-14)
        row = leaf
        for layer in net.hidden_layers:
            row = layer(row)
        along = (row @ shared) * (net.readout.weight[0].detach() @ shared)
        centred = net.readout.weight[0] @ row - along
        assert_close(gradients[1, i], torch.autograd.grad(centred, leaf)[0], rtol=1e-10, atol=1e-12)
        assert_close(hidden[i], row.detach(), rtol=1e-13, atol=1e-14)


def test_the_net_is_left_as_it_was():
    net = build("HighwayNet-relu-L9")
    before = fingerprint(net)
    input_gradients(net, batch()[0])
    assert_same(before, fingerprint(net))


def test_cosine_by_lag_is_the_mean_over_pairs():
    """By a double loop; pairs with a zero vector do not count, and sizes whose squares underflow do not matter."""
    v = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v[4] = 0
    for lag in (1, 3, 5):
        pairs = [(v[i], v[(i + lag) % 10]) for i in range(10) if 4 not in (i, (i + lag) % 10)]
        expected = sum(torch.nn.functional.cosine_similarity(a, b, dim=0) for a, b in pairs) / len(pairs)
        assert_close(cosine_by_lag(v, [lag])[0], expected, rtol=1e-13, atol=1e-14)
        assert_close(cosine_by_lag(v * 1e-250, [lag])[0], expected, rtol=1e-13, atol=1e-14)
    assert cosine_by_lag(torch.zeros(4, 2, dtype=torch.float64), [1]).isnan().all()


@pytest.mark.parametrize("net", [
    PlainNet(12, 9, 20, 3, "linear"), ResidualNet(12, 9, 20, 3, "linear"),
    HighwayNet(12, 9, 20, 3, "linear", gate_bias=-math.inf), HighwayNet(12, 9, 20, 3, "linear", gate_bias=math.inf),
], ids=["plain", "residual", "closed gates", "open gates"])
def test_linear_nets_have_one_gradient_everywhere(net):
    """The output's gradient is one vector: correlation exactly 1 at every lag, to rounding."""
    gradients, _ = input_gradients(initialize(net, "lecun_normal"), around(16))
    for at in gradients:
        assert_close(cosine_by_lag(at, [1, 3, 8]), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_closed_gates_do_not_shatter(activation):
    """50 layers of closed gates have the gradients of the first layer alone, bit for bit."""
    shallow, deep = (initialize(HighwayNet(12, 9, depth, 3, activation, gate_bias=-math.inf), "he_normal")
                     for depth in (1, 50))
    deep.readout.load_state_dict(shallow.readout.state_dict())
    for mine, other in zip(input_gradients(deep, around(16)), input_gradients(shallow, around(16)), strict=True):
        assert torch.equal(mine, other)


def test_homogeneous_nets_send_back_along_the_input_what_they_put_out():
    """ReLU without biases: gradient . x = output (Euler), and 0 on the mean of a centred read-out's outputs."""
    net, x = initialize(ResidualNet(12, 30, 20, 3), "he_normal").double(), around(16)
    (output, centred), hidden = input_gradients(net, x)
    assert_close((output * x).sum(1), net(x)[:, 0].detach(), rtol=1e-10, atol=1e-10)
    scale = (net.readout.weight[0].norm() * hidden.norm(dim=1).max()).item()
    assert abs((centred * x).sum(1).mean().item()) < 1e-12 * scale


# --- beside theory ---------------------------------------------------------------------------------------------------

PLAN = [*fs.grid(net=["plain", "residual"], activation="relu", init="he_normal", depth=[1, 2, 8], width=300,
                 seed=range(12)),
        *fs.grid(net="highway", activation=["relu", "tanh"], init="lecun_normal", gate_bias=-1.0, depth=8, width=300,
                 seed=range(12), bias_var=0.1),
        *fs.grid(net="plain", activation="tanh", init="orthogonal", depth=2, width=20, seed=range(2))]


def run(cells, store, **options) -> pd.DataFrame:
    return fs.run(cells, store=store, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> pd.DataFrame:
    return run(PLAN, tmp_path_factory.mktemp("store"), measure="gradient_correlation", points=32)


def test_gradients_and_signals_are_as_predicted(rows):
    """|z| < 4.5 beyond finite width's O(depth / width), for every kind of net and lag; `z` is the stated ratio."""
    found = with_predicted_correlations(rows)
    known = found[found["predicted"].notna() & (found["readout"] == "centred")]
    assert known.groupby(["net", "activation", "depth"]).ngroups == 8
    finite_width = known["depth"] / known["width"]
    assert (known["gap"].abs() < 4.5 * known["standard_error"] + finite_width).all()
    assert ((known["hidden"] - known["predicted_hidden"]).abs() < 0.02 + finite_width).all()
    np.testing.assert_allclose(known["z"], known["gap"] / known["standard_error"], rtol=1e-3)
    assert found.loc[found["init"] == "orthogonal", "predicted"].isna().all()


def test_one_relu_layer_by_hand(rows):
    """Masks of two inputs agree with probability 1 - angle / pi; at 90 degrees that is independent masks' 1/2."""
    found = with_predicted_correlations(rows)
    one = found[(found["depth"] == 1) & (found["net"] == "plain")]
    np.testing.assert_allclose(one["predicted"], 1 - one["angle"] / math.pi, atol=1e-12)
    at_right_angles = one[np.isclose(one["angle"], math.pi / 2)]
    assert at_right_angles["predicted"].tolist() == pytest.approx(at_right_angles["independent"].tolist())
    deep = found[found["depth"] == 8].groupby("net")["independent"].first()
    assert deep["plain"] == pytest.approx(2.0**-8) and deep["residual"] == pytest.approx(0.5 * 0.75**7)
    assert np.isnan(deep["highway"])


def test_true_masks_do_not_halve_the_correlation_per_layer(rows):
    """Eight plain ReLU layers at 90 degrees keep many times 2^-8; residual ones keep more at any angle below that."""
    found = with_predicted_correlations(rows)
    deep = found[(found["depth"] == 8) & (found["readout"] == "centred") & (found["activation"] == "relu")]
    plain, residual = (deep[deep["net"] == net].set_index("angle")["measured"] for net in ("plain", "residual"))
    assert plain[np.isclose(plain.index, math.pi / 2)].item() > 5 * 2.0**-8
    below = plain.index < 2
    assert (residual[below] > plain[below]).all()


def test_derivative_along_the_circle_is_that_of_the_output(tmp_path):
    """Central differences of the output over a finer circle, up to scale: its rms is 1."""
    [cell] = fs.grid(net="residual", activation="tanh", init="lecun_normal", depth=3, width=20)
    frame = run([cell], tmp_path, measure="gradient_around_circle", points=8)
    data = fs.load_dataset("digits").flat()
    net = initialize(ResidualNet(64, 20, 3, 10, "tanh"), "lecun_normal", seed=0).double()
    output = net(circle(data.x_train[0], data.x_train[1], 8000))[:, 0].detach().numpy()
    slope = (np.roll(output, -1) - np.roll(output, 1))[::1000]
    np.testing.assert_allclose(frame["gradient"], slope / np.sqrt(np.mean(slope**2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options, message", [({"points": 3}, "`points` must be an integer of at least 4, got 3"),
                                              ({"points": 8.0}, "`points` must be an integer of at least 4, got 8.0")])
@pytest.mark.usefixtures("annotations_unchecked")
def test_nonsense_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"^run: {message}"):
        run(fs.grid(depth=2, width=4), tmp_path, measure="gradient_correlation", **options)
    with pytest.raises(ValueError, match=r"^run: `epochs` must be 0 to measure input gradients, got 2"):
        run(fs.grid(depth=2, width=4, epochs=2), tmp_path, measure="gradient_correlation")


# --- drawn -----------------------------------------------------------------------------------------------------------


def test_figures_draw_measurement_and_prediction(rows, tmp_path):
    """Dashed lines go through the predicted values; the caption has the largest gap; independent masks are dotted."""
    found = with_predicted_correlations(rows)
    plain = found[(found["net"] == "plain") & (found["activation"] == "relu") & (found["readout"] == "centred")]
    figure = plots.gradient_correlation(rows)
    dashed = [line.get_ydata() for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert len(dashed) == 3
    assert list(dashed[2]) == pytest.approx(plain.loc[plain["depth"] == 8, "predicted"].tolist())
    largest = found.loc[found["readout"] == "centred", "gap"].abs().max()
    assert f"Measured less theory: {number(largest)} at most." in caption_of(figure)
    dotted = [line.get_ydata() for line in plots.gradient_correlation_by_depth(rows).axes[0].lines
              if line.get_linestyle() == ":"]
    assert any(list(y) == pytest.approx([0.5, 0.25, 2.0**-8]) for y in dotted)
    around = run(PLAN[:2], tmp_path, measure="gradient_around_circle", points=8)
    assert len(plots.gradient_around_circle(around).axes[0].lines[0].get_xdata()) == 8
    assert set(rows["readout"]) == set(READOUTS)
