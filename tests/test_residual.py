"""Residual layers: half of one is a highway layer of half-open gates, in nets and in theory; wide nets as predicted."""

import math

import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES, assert_same, batch
from torch import nn
from torch.testing import assert_close

from flowstudy import theory
from flowstudy.measure import stacked_gradient_flow
from flowstudy.nets import ACTIVATIONS, HighwayBlock, PlainNet, ResidualBlock, ResidualNet, initialize
from flowstudy.train import stack

COLUMNS = ["layer", "q", "m", "c", "chi", "mean_squared", "gradient_correlation"]


# --- nets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_of_a_residual_layer_is_a_highway_layer_of_half_open_gates(activation):
    """W_T = 0, b_T = 0: T = 1/2 for every input, y = (x + H) / 2; only roundings differ."""
    torch.manual_seed(0)
    residual, highway = ResidualBlock(nn.Linear(6, 6), activation).double(), HighwayBlock(nn.Linear(6, 12), activation)
    highway.double().requires_grad_(False)
    for mine, fused in zip(residual.affine.parameters(), highway.affine.parameters(), strict=True):
        fused.copy_(torch.cat([mine, torch.zeros_like(mine)]))
    x = torch.randn(9, 6, dtype=torch.float64)
    assert_close(residual(x), 2 * highway(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_branches_of_weight_0_leave_the_first_layer(activation):
    """100 layers whose branches say 0: outputs and the first layer's gradients are those of depth 1, bit for bit."""
    shallow, deep = (initialize(kind(FEATURES, 8, depth, CLASSES, activation), "he_normal")
                     for kind, depth in ((PlainNet, 1), (ResidualNet, 100)))
    for p in deep.blocks.parameters():
        nn.init.zeros_(p)
    deep.readout.load_state_dict(shallow.readout.state_dict())
    x, y = batch()
    for net in (shallow, deep):
        nn.functional.cross_entropy(net(x), y).backward()
    assert torch.equal(deep(x), shallow(x))
    assert torch.equal(deep.input.affine.weight.grad, shallow.input.affine.weight.grad)


def test_weights_are_drawn_as_the_plain_nets():
    """The same matrices in the same places: a seed gives a residual net the plain net's weights, biases too."""
    plain, residual = (initialize(kind(FEATURES, 8, 5, CLASSES), "random_walk", seed=3, bias_var=0.1)
                       for kind in (PlainNet, ResidualNet))
    assert_same(dict(plain.state_dict()), dict(residual.state_dict()))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"^ResidualBlock: `activation` must be one of relu, .*, got 'rleu'\."):
        ResidualBlock(nn.Linear(2, 2), "rleu")


# --- theory: identities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation, depth", [("relu", 60), ("linear", 60), ("leaky_relu", 60), ("tanh", 1),
                                               ("sigmoid", 1), ("gelu", 1)])
def test_theory_is_that_of_half_open_gates(activation, depth):
    """T = 1/2: y is half as large, where phi is homogeneous in every layer; E H^2 there by quadrature, hence 1e-9."""
    given = {"weight_var": 1.7, "q0": 1.3, "m0": 0.4, "c0": 0.25, "bias_var": 0.0}
    residual = theory.residual_net(activation, depth, **given)
    highway = theory.highway(activation, depth, 0.0, gate_weight_var=0.0, **given)
    powers = 2.0 ** residual["layer"]
    for name, scale in {"q": powers**2, "m": powers, "c": 1, "chi": 4, "mean_squared": powers**2,
                        "gradient_correlation": 1}.items():
        unit = np.sqrt(residual["q"]) if name == "m" else residual[name]
        np.testing.assert_allclose(residual[name] / unit, scale * highway[name] / unit, rtol=1e-9, atol=1e-10)


def test_linear_layers_keep_every_cosine():
    """phi(h) = h, no bias: q grows by 1 + weight_var, the cosine of signals stays, that of gradients is 1."""
    frame = theory.residual_net("linear", 12, 0.7, q0=2.0, m0=0.3, c0=-0.4)
    assert list(frame.columns) == COLUMNS and frame["layer"].tolist() == list(range(1, 13))
    expected = np.column_stack([2.0 * 1.7 ** frame["layer"], np.full(12, 0.3), np.full(12, -0.4), np.full(12, 1.7),
                                1.7 ** frame["layer"], np.ones(12)])
    np.testing.assert_allclose(frame[COLUMNS[1:]], expected, rtol=1e-13, atol=1e-14)


def test_one_relu_layer_by_hand():
    """He weights, orthogonal inputs of mean m: E H = sqrt(q / pi), E H_a H_b = q / pi, masks agree in 1/4."""
    q, m = 2.0, 0.6
    row = theory.residual_net("relu", 1, 2.0, q0=q, m0=m, c0=0.0).iloc[0]
    cross = 2 * m * math.sqrt(q / math.pi)
    assert row["m"] == pytest.approx(m + math.sqrt(q / math.pi), rel=1e-12)
    assert row["q"] == pytest.approx(2 * q + cross, rel=1e-12)
    assert row["c"] == pytest.approx((q / math.pi + cross) / (2 * q + cross), rel=1e-12)
    assert row["chi"] == pytest.approx(2.0) and row["gradient_correlation"] == pytest.approx(3 / 4)


def test_deep_nets_stay_in_range():
    """2000 ReLU layers: q overflows to inf, ratios do not; the mean mode grows by 2.904 a layer, the gradient by 2."""
    frame = theory.residual_net("relu", 2000, 2.0, c0=0.0)
    assert frame["q"].iloc[-1] == math.inf and frame["chi"].iloc[-1] == pytest.approx(2.0)
    assert frame["q"].iloc[100] / frame["q"].iloc[99] == pytest.approx(2.9041, abs=1e-4)
    assert frame[["c", "gradient_correlation"]].iloc[-1].tolist() == pytest.approx([1.0, 0.2171], abs=1e-4)


@pytest.mark.parametrize("arguments, message", [
    ({"depth": 0}, "`depth` must be "), ({"weight_var": -1.0}, "`weight_var` must be "),
    ({"c0": 1.5}, "`c0` must be "), ({"m0": 2.0}, r"`m0` must be at most sqrt\(q0\)"),
    ({"activation": "rleu"}, "Did you mean 'relu'"), ({"depth": [3, 4]}, "`depth` must be one number"),
])
@pytest.mark.usefixtures("annotations_unchecked")
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^residual_net: .*{message}"):
        theory.residual_net(**{"activation": "relu", "depth": 3, "weight_var": 2.0} | arguments)


# --- theory against nets ---------------------------------------------------------------------------------------------

DEPTH, SEEDS = 5, 8


@pytest.mark.parametrize("width", [300, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation, weight_var, bias_var", [("relu", 2.0, 0.0), ("tanh", 1.5, 0.0),
                                                              ("relu", 0.5, 0.2), ("gelu", 1.0, 0.0)])
def test_signals_of_wide_nets(activation, weight_var, bias_var, width):
    """q, m, c of every layer, and the error signal's squared norm: |z| < 4.5 beyond the 3 depth / width of finite
    width, relative to q and sqrt(q)."""
    nets = stack([initialize(ResidualNet(width, width, DEPTH, 1, activation).double(), "lecun_normal", seed=seed,
                             gain=math.sqrt(weight_var), bias_var=bias_var) for seed in range(SEEDS)])
    x = two_inputs(width, 0.3)
    readout = np.random.default_rng(0).standard_normal((SEEDS, 1, width)) / math.sqrt(width)
    nets.state["readout.weight"] = torch.from_numpy(readout)
    flow = {name: value.numpy() for name, value in
            stacked_gradient_flow(nets.template, nets.state, x, None, loss=lambda y, _: y.sum()).items()}
    first = theory.highway(activation, 1, math.inf, weight_var, c0=0.3, bias_var=bias_var).iloc[0]  # the plain layer
    frame = theory.residual_net(activation, DEPTH - 1, weight_var, first["q"], first["m"], first["c"],
                                bias_var=bias_var)
    q = frame["q"].to_numpy()
    assert_close_to_theory(flow["activation_mean_square"][:, 1:] / q, 1.0, width)
    assert_close_to_theory(flow["activation_mean"][:, 1:] / np.sqrt(q), frame["m"].to_numpy() / np.sqrt(q), width)
    assert_close_to_theory(flow["activation_correlation"][:, 1:], frame["c"].to_numpy(), width)
    back = 100.0 ** (flow["log10_error_signal_norm"][:, :1] - flow["log10_error_signal_norm"][:, -1:])
    assert_close_to_theory(back / frame["mean_squared"].iloc[-1], 1.0, width)


def two_inputs(features: int, cosine: float) -> torch.Tensor:
    """Mean square 1 and this cosine, exactly."""
    e1, e2 = torch.linalg.qr(torch.randn(features, 2, generator=torch.Generator().manual_seed(1),
                                         dtype=torch.float64))[0].T
    return math.sqrt(features) * torch.stack([e1, cosine * e1 + math.sqrt(1 - cosine**2) * e2])


def assert_close_to_theory(sample: np.ndarray, expected: float | np.ndarray, width: int) -> None:
    error = sample.std(0, ddof=1) / math.sqrt(len(sample))
    excess = np.abs(sample.mean(0) - expected) - 3 * DEPTH / width
    assert (excess < 4.5 * error).all(), (sample.mean(0) - expected, error)
