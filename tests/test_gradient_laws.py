"""Gradient flow against mathematics: below float64's range, at any width, and the known slopes with their errors."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES, batch
from scipy import stats
from scipy.special import polygamma, psi
from torch import Tensor, nn

from flowstudy.measure import gradient_flow, stacked_gradient_flow
from flowstudy.measure.gradients.signal import backward_slope, path_frame, slope_error
from flowstudy.nets import SCHEMES, HighwayNet, PlainNet, initialize
from flowstudy.train import stack

NORMS = ["log10_weight_gradient_norm", "log10_error_signal_norm"]


# --- below the range of numbers --------------------------------------------------------------------------------------


def rescaled_reference(net: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """By hand in numpy: sigmoid layers, the error signal divided by its norm at every layer, the logs added up."""
    weights = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy())
               for m in net.modules() if isinstance(m, nn.Linear)]
    h, inputs = x.double().numpy(), []
    for w, b in weights[:-1]:
        inputs.append(h)
        h = 1 / (1 + np.exp(-(h @ w.T + b)))
    logits = h @ weights[-1][0].T + weights[-1][1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error, log10_size, rows = (p - np.eye(p.shape[1])[y.numpy()]) / len(y) @ weights[-1][0], 0.0, []
    for (w, b), below in reversed(list(zip(weights[:-1], inputs, strict=True))):
        size = np.linalg.norm(error)
        error, log10_size = error / size, log10_size + math.log10(size)
        s = 1 / (1 + np.exp(-(below @ w.T + b)))
        at_preactivation = error * s * (1 - s)
        rows.append((math.log10(np.linalg.norm(at_preactivation.T @ below)) + log10_size, log10_size))
        error = at_preactivation @ w
    return pd.DataFrame(rows[::-1], columns=NORMS)


@pytest.mark.parametrize("depth", [100, 600, pytest.param(2000, marks=pytest.mark.slow)])
def test_sigmoid_nets_far_below_float32_and_float64(depth):
    """Depth 100: float32's first gradient is exactly 0. 600: below float64's least number. 2000: 1e-1300. All to 1e-9,
    by a rescaled reference."""
    net = initialize(PlainNet(12, 20, depth, 5, "sigmoid"), "glorot_normal", seed=1)
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    y = torch.arange(9) % 5
    frame = gradient_flow(net, x, y).frame
    expected = rescaled_reference(net, x, y)
    for name in NORMS:
        np.testing.assert_allclose(frame[name], expected[name], rtol=0, atol=1e-9)
    assert frame[NORMS[0]][0] < {100: -45, 600: -324, 2000: -1000}[depth]
    if depth == 100:
        nn.functional.cross_entropy(net(x), y).backward()
        assert not net.input.affine.weight.grad.any()
        assert frame["gradient_subnormal_fraction"][0] == 1


def test_a_users_chain_and_ours_have_no_floor_either_way():
    """Weights c Q, Q orthogonal: each linear layer multiplies the error signal by exactly c, to 1e-400 and to 1e400."""
    torch.manual_seed(0)
    x = torch.randn(4, 8).double()
    for c in (1e-4, 1e4):
        layers = [nn.Linear(8, 8, bias=False).double() for _ in range(100)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, gain=c)
        layers[0].weight.data /= 1e300  # an activation that neither over- nor underflows is not at stake here
        model = nn.Sequential(*[m for layer in layers for m in (layer, Unit())])
        error = gradient_flow(model, x, loss=lambda output, _: output.sum()).frame[NORMS[1]].to_numpy()
        np.testing.assert_allclose(np.diff(error), -math.log10(c), rtol=0, atol=1e-10)
        assert abs(error[0]) > 390


class Unit(nn.Module):
    """Forward: sets the size of what goes forward to 1e-150. Backward: the identity, so that only weights act."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (1e-150 * torch.sign(x) - x).detach()


# --- exact at any width ----------------------------------------------------------------------------------------------


def masked_layer(width: int) -> tuple[float, float]:
    """Mean and variance of ln (2 / n) chi^2_k with k ~ Bin(n, 1/2): a He ReLU layer's gain in squared norm.

    Source: Hanin & Nica 2018; k = 0, of probability 2^-n, is left out.
    """
    k = np.arange(1, width + 1)
    p = stats.binom.pmf(k, width, 0.5)
    p /= p.sum()
    mean = p @ psi(k / 2)
    return math.log(4 / width) + mean, p @ polygamma(1, k / 2) + p @ (psi(k / 2) - mean) ** 2


def test_he_relu_nets_have_the_exact_finite_width_law_at_every_layer():
    """N = 32, L = 20, 1000 nets: mean and variance of the log weight and input gradients, |z| < 4.5 each.

    ||dL/dW_l||^2 is a product of L independent masked factors, the read-out's among them, whatever l; the input
    gradient has one unmasked factor, chi^2_N, more.  The log is a sum of 20 terms, close to normal: the variance of a
    sample variance is 2 / (n - 1), with 20 % on its root for the excess kurtosis.
    """
    width, depth, nets = 32, 20, 1000
    generator = torch.Generator().manual_seed(0)
    net = PlainNet(width, width, depth, 1)
    state = {name: torch.randn(nets, *p.shape, generator=generator, dtype=torch.float64) * (2 / width) ** 0.5
             if p.ndim == 2 else torch.zeros(nets, *p.shape, dtype=torch.float64) for name, p in net.named_parameters()}
    state["readout.weight"] *= 0.5**0.5
    x = torch.nn.functional.normalize(torch.randn(1, width, generator=generator))
    measured = stacked_gradient_flow(net, state, x, None, loss=lambda output, _: output.sum())
    mean, variance = masked_layer(width)
    weight = 2 * math.log(10) * measured[NORMS[0]].numpy()
    assert_law(weight, depth * mean - math.log(2), depth * variance)
    at_input = 2 * math.log(10) * measured["log10_input_gradient_norm"].numpy()
    unmasked = math.log(4 / width) + psi(width / 2)
    assert_law(at_input, depth * mean - math.log(2) + unmasked, depth * variance + polygamma(1, width / 2))


def assert_law(sample: np.ndarray, mean: float, variance: float) -> None:
    nets = len(sample)
    assert np.abs(sample.mean(0) - mean).max() < 4.5 * math.sqrt(variance / nets)
    assert np.abs(sample.var(0, ddof=1) / variance - 1).max() < 4.5 * 1.2 * math.sqrt(2 / (nets - 1))


# --- the slope and its error -----------------------------------------------------------------------------------------


def frame_of(logs: np.ndarray, layers: np.ndarray | None = None) -> pd.DataFrame:
    layers = np.arange(1, len(logs) + 1) if layers is None else layers
    return pd.DataFrame({"layer": layers, "log10_error_signal_norm": logs / (2 * math.log(10))})


def test_slope_error_is_that_of_a_random_walk():
    """2000 random walks of drift 0.1: (slope - drift) / error has a variance near 1, gaps in the layers or none.

    Student's t with 28 degrees of freedom has the variance 28 / 26; 2000 draws know it to 3.5 %.
    """
    rng = np.random.default_rng(0)
    for layers in (np.arange(1, 31), np.sort(rng.choice(np.arange(1, 60), 30, replace=False))):
        z = []
        for _ in range(2000):
            walk = np.cumsum(rng.normal(0.1, 0.3, layers[-1]))[::-1][layers - 1]  # grows towards the input
            frame = frame_of(walk, layers)
            z.append((backward_slope(frame) - 0.1) / slope_error(frame))
        assert abs(np.mean(z)) < 4.5 / math.sqrt(2000)
        assert np.var(z) == pytest.approx(28 / 26, rel=0.15)


def test_averaging_over_positions_is_no_change():
    """The mean over 1024 positions divides the squared norm by 1024: levelled out, to rounding."""
    logs = -math.log(2) * np.arange(10.0)[::-1]
    averaged = np.where(np.arange(10) < 7, 1024, 1)
    norms = (logs - np.log(averaged)) / (2 * math.log(10))
    columns = {"layer": list(range(1, 11)), "log10_error_signal_norm": norms.tolist(), "own": [True] * 10,
               "activation_mean_square": [1.0] * 10, "averaged_positions": averaged.tolist()}
    assert backward_slope(path_frame(columns, ["Linear"] * 10, False)) == pytest.approx(-math.log(2), abs=1e-12)


def test_an_exact_geometric_decay_has_no_error():
    """Each layer a factor 1/2: slope ln 1/2 and error 0 to rounding; two layers have no error, one no slope."""
    frame = frame_of(-math.log(2) * np.arange(10)[::-1])
    assert backward_slope(frame) == pytest.approx(-math.log(2), abs=1e-12)
    assert slope_error(frame) < 1e-12
    assert math.isnan(slope_error(frame[:2])) and math.isnan(backward_slope(frame[:1]))


# --- known slopes ----------------------------------------------------------------------------------------------------


def slope_standard_error(depth: int, variance: float, nets: int) -> float:
    """Of the mean least-squares slope of `nets` random walks of depth - 1 steps of that variance.

    The error signal at h is the walk plus one unmasked factor chi^2_n / n, white noise that adds of the order
    4 / depth^2 to the variance: 5 % on the error covers it at the depths here.
    """
    layer = np.arange(1, depth + 1) - (depth + 1) / 2
    weight = -np.cumsum(layer)[:-1] / (layer @ layer)  # of each step; they sum to 1
    assert weight.sum() == pytest.approx(1)
    return 1.05 * math.sqrt(variance * (weight @ weight) / nets)


def slopes(scheme: str, width: int, depth: int, nets: int, activation: str = "relu") -> np.ndarray:
    """One input, a random read-out: what the theory of gradient norms assumes."""
    x, _ = batch(1)
    return np.array([gradient_flow(initialize(PlainNet(FEATURES, width, depth, CLASSES, activation).double(), scheme,
                                              seed=seed), x).slope for seed in range(nets)])


@pytest.mark.parametrize("nets", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_slopes_of_wide_relu_nets(nets):
    """He is flat but for the exact finite-width bias (4.5 standard errors); Glorot loses exactly 1/2 a layer more.

    A ReLU net without biases is homogeneous: weights smaller by sqrt(2) halve the squared error signal at each layer.
    """
    width, depth = 128, 30
    he, glorot = (slopes(scheme, width, depth, nets) for scheme in ("he_normal", "glorot_normal"))
    mean, variance = masked_layer(width)
    assert abs(he.mean() - mean) < 4.5 * slope_standard_error(depth, variance, nets)
    assert abs(he.mean()) < 0.05
    np.testing.assert_allclose(glorot - he, math.log(1 / 2), rtol=0, atol=1e-10)


def test_orthogonal_linear_net_is_flat():
    """Linear layers with orthogonal weights pass the error signal on at its length: the slope is 0 to 1e-10."""
    assert np.abs(slopes("orthogonal", 64, 50, 3, "linear")).max() < 1e-10


@pytest.mark.parametrize("width, depth, nets", [(16, 20, 30), pytest.param(50, 50, 40, marks=pytest.mark.slow)])
def test_random_walk_is_flattest_for_narrow_relu_nets(width, depth, nets):
    """Of all schemes the random walks have the mean slope closest to 0; each normal one has its exact mean.

    He's slope is the masked layer's mean, a scheme of gain g adds 2 ln(g / sqrt 2): 4.5 standard errors.
    """
    x, y = batch(1)
    measured = {}
    for scheme in SCHEMES:
        many = stack([initialize(PlainNet(FEATURES, width, depth, CLASSES).double(), scheme, seed=seed)
                      for seed in range(nets)])
        log_square = 2 * math.log(10) * stacked_gradient_flow(many.template, many.state, x, y)[NORMS[1]].numpy()
        measured[scheme] = -np.polyfit(np.arange(depth), log_square.T, 1)[0].mean()
    assert min(measured, key=lambda scheme: abs(measured[scheme])).startswith("random_walk")
    mean, variance = masked_layer(width)
    error = slope_standard_error(depth, variance, nets)
    for scheme, gain in (("he_normal", math.sqrt(2)), ("glorot_normal", 1.0), ("lecun_normal", 1.0),
                         ("random_walk", math.sqrt(2) * math.exp(1.2 / (width - 2.4))),
                         ("random_walk_exact", math.sqrt(2) * math.exp(-mean / 2))):
        assert abs(measured[scheme] - mean - 2 * math.log(gain / math.sqrt(2))) < 4.5 * error
    assert abs(measured["he_normal"]) > 4.5 * error > abs(measured["random_walk"])


def test_closed_highway_is_flat():
    """All gates closed: the error signal is the same at every layer, to the last bit."""
    x, y = batch()
    net = initialize(HighwayNet(FEATURES, 8, 40, CLASSES, gate_bias=-math.inf), "he_normal")
    assert gradient_flow(net, x, y).frame[NORMS[1]].nunique() == 1
