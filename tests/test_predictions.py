"""Theory against Monte Carlo by flowstudy's own measurements: |z| < 4.5 everywhere, the standard error as stated.

Exact predictions hold at any width, so narrow nets will do. z of a mean has the exact variance over the number of nets
in it; z of a variance has the sample's fourth moment in its standard error, sqrt((m4 - m2^2) / nets).
"""

import functools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from flowstudy import theory
from flowstudy.measure import jacobian_spectrum, product_svd, stacked_gradient_flow, stacked_jacobian_spectrum
from flowstudy.nets import PlainNet, initialize
from flowstudy.predictions import layers
from flowstudy.theory.mean_field.activations import ACTIVATIONS
from flowstudy.train import stack

LARGEST_Z = 4.5
NATS = 2 * math.log(10)  # log10 of a norm -> ln of its square
INITS = {"lecun_normal": ("gaussian", 1.0), "he_normal": ("gaussian", 2.0), "orthogonal": ("orthogonal", 2.0)}


def z_scores(sample: np.ndarray, predicted: theory.Moments) -> tuple[float, float]:
    """How many standard errors the sample's mean and variance are off."""
    deviation = sample - predicted.mean
    square = np.square(deviation)
    return (deviation.mean() / math.sqrt(predicted.variance / len(sample)),
            (square.mean() - predicted.variance) / (square.std() / math.sqrt(len(sample))))


@functools.cache
def nets(activation: str, init: str, width: int, depth: int, many: int):
    """A stack with a Gaussian read-out of variance 1 / width, and one input of norm 1."""
    gain = math.sqrt(2) if init == "orthogonal" else None
    stacked = stack([initialize(PlainNet(width, width, depth, 1, activation).double(), init, seed=seed, gain=gain)
                     for seed in range(many)])
    readout = np.random.default_rng(depth).standard_normal((many, 1, width)) / math.sqrt(width)
    stacked.state["readout.weight"] = torch.from_numpy(readout)
    return stacked, torch.nn.functional.normalize(torch.arange(1.0, width + 1, dtype=torch.float64)[None])


@functools.cache
def flow(*case) -> dict[str, np.ndarray]:
    stacked, x = nets(*case)
    found = stacked_gradient_flow(stacked.template, stacked.state, x, None, loss=lambda output, _: output.sum())
    return {name: value.numpy() for name, value in found.items()}


# --- norms -----------------------------------------------------------------------------------------------------------

def with_many(many: int, *cases: tuple) -> list:
    """Each case twice: with `many` nets, slow, and with a quarter of them; the standard errors follow."""
    return [pytest.param((*case, nets), marks=marks) for case in cases
            for nets, marks in ((many // 4, ()), (many, pytest.mark.slow))]


NORMS = [  # activation, init, width, depth, nets
    *with_many(1000, ("linear", "lecun_normal", 12, 6)),
    *with_many(600, ("relu", "he_normal", 16, 10), ("relu", "orthogonal", 16, 10)),
    *with_many(300, ("relu", "he_normal", 24, 30)),
]


@pytest.mark.parametrize("case", NORMS)
def test_forward_norms(case):
    """ln ||x_L||^2 of an input of norm 1 is ln ||J u||^2, since the net is homogeneous."""
    activation, init, width, depth, _ = case
    log_square = np.log(flow(*case)["activation_mean_square"][:, -1] * width)
    predicted = theory.log_jacobian_norm(width, depth, activation, *INITS[init])
    assert np.abs(z_scores(log_square, predicted)).max() < LARGEST_Z


@pytest.mark.parametrize("case", NORMS)
def test_input_gradient_norms(case):
    """ln ||df/dx||^2: read-out, masked layers, an unmasked first layer."""
    activation, init, width, depth, _ = case
    predicted = theory.log_input_gradient_norm(width, depth, activation, *INITS[init])
    assert np.abs(z_scores(NATS * flow(*case)["log10_input_gradient_norm"], predicted)).max() < LARGEST_Z


@pytest.mark.parametrize("case", NORMS)
def test_weight_gradient_norms(case):
    """ln ||df/dW_l||^2 has one mean and variance in all layers: the first, a middle one, the last."""
    activation, init, width, depth, _ = case
    predicted = theory.log_weight_gradient_norm(width, depth, activation, *INITS[init])
    for layer in (0, depth // 2, depth - 1):
        sample = NATS * flow(*case)["log10_weight_gradient_norm"][:, layer]
        assert np.abs(z_scores(sample, predicted)).max() < LARGEST_Z


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_weight_gradients_of_two_inputs(activation):
    """||dL/dW_l||^2 of a batch is sum_st (dL/dh_s . dL/dh_t) (x_s . x_t). Two inputs that one read-out asks alike have
    (1 + c gc) / 2 of what either alone would have: c the cosine of the layer's inputs, gc that of what comes back from
    the read-out to the layer's preactivations. Wide nets: |z| < 4.5 and O(1 / width) a layer."""
    width, depth, many = 128, 6, 40
    stacked, _ = nets(activation, "he_normal", width, depth, many)
    a, b = np.linalg.qr(np.random.default_rng(1).standard_normal((width, 2)))[0].T * math.sqrt(width)
    pair = torch.from_numpy(np.stack([a, 0.6 * a + 0.8 * b]))
    both, one, other = (10 ** (2 * stacked_gradient_flow(stacked.template, stacked.state, x, None,
                                                         loss=lambda output, _: output.mean())
                               ["log10_weight_gradient_norm"].numpy()) for x in (pair, pair[:1], pair[1:]))
    ratio = both / ((one + other) / 2)
    theirs = theory.plain(activation, depth, 2.0, q0=1.0, c0=0.6)
    inputs = np.append(0.6, theirs["c"][:-1])
    back = theirs["gradient_correlation"].iloc[-1] / np.append(1.0, theirs["gradient_correlation"][:-1])
    error = ratio.std(0) / math.sqrt(many)
    assert np.all(np.abs(ratio.mean(0) - (1 + inputs * back) / 2) < LARGEST_Z * error + depth / width)


@pytest.mark.parametrize("many", [75, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_random_walk_exact_has_no_drift(activation, many):
    """Weights of `random_walk_exact`: the error signal's log norm keeps its mean from the last layer to the first."""
    width, depth = 10, 20
    case = (activation, "random_walk_exact", width, depth, many)
    error = NATS * flow(*case)["log10_error_signal_norm"]
    gain = theory.random_walk_gain(activation, width, exact=True)
    predicted = theory.log_jacobian_norm(width, depth - 1, activation, weight_var=gain**2)
    assert predicted.mean == pytest.approx(0, abs=1e-12)
    alive = np.isfinite(error).all(1)  # about 2^-10 of the ReLU layers are dead
    assert alive.mean() > 0.9
    assert np.abs(z_scores(error[alive, 0] - error[alive, -1], predicted)).max() < LARGEST_Z


# --- spectra ---------------------------------------------------------------------------------------------------------


@functools.cache
def log_singular_values(*case) -> np.ndarray:
    """(net, rank) of the body's Jacobian, depth - 1 square layers."""
    stacked, x = nets(*case)
    return stacked_jacobian_spectrum(stacked.template, stacked.state, x, part="body")[:, 0].numpy()


@pytest.mark.parametrize("case", [*with_many(1000, ("linear", "lecun_normal", 12, 6)),
                                  *with_many(160, ("linear", "lecun_normal", 20, 31))])
def test_sum_of_log_singular_values(case):
    """ln |det J| of linear Gaussian nets."""
    predicted = theory.sum_log_singular_values(case[2], case[3] - 1)
    assert np.abs(z_scores(log_singular_values(*case).sum(1), predicted)).max() < LARGEST_Z


# Nearly log-normal: shallow and not too narrow, or a sample does not know its own standard error. For these the z of 40
# batches of matrices had a spread of 1.0 to 1.1, with a quarter as many nets 1.1 to 1.2.
SPECTRA = [*with_many(1000, ("linear", "lecun_normal", 12, 6)), *with_many(800, ("relu", "he_normal", 24, 3)),
           *with_many(600, ("relu", "he_normal", 32, 4))]
RANKS = [*with_many(800, ("relu", "he_normal", 24, 3)), *with_many(600, ("relu", "he_normal", 16, 10))]


@pytest.mark.parametrize("case", SPECTRA)
def test_moments_of_the_spectrum(case):
    """E (1/n) tr J J^T, its variance's z by the sample, and E (1/n) tr (J J^T)^2 with the sample's standard error."""
    activation, _, width, depth, many = case
    square = np.exp(2 * log_singular_values(*case))
    predicted = theory.mean_squared(width, depth - 1, activation)
    second = np.square(square).mean(1)
    z = (*z_scores(square.mean(1), predicted),
         (second.mean() - theory.second_moment(width, depth - 1, activation)) / (second.std() / math.sqrt(many)))
    assert np.abs(z).max() < LARGEST_Z


@pytest.mark.parametrize("case", RANKS)
def test_rank(case):
    """The mean number of singular values above exactly 0, by the sample's standard error."""
    _, _, width, depth, many = case
    rank = np.isfinite(log_singular_values(*case)).sum(1)
    z = (rank.mean() - theory.expected_rank(width, depth - 1)) / (rank.std() / math.sqrt(many))
    assert abs(z) < LARGEST_Z


# --- products of matrices, by `product_svd` ---------------------------------------------------------------------------


def gaussian_factors(n: int, depth: int, batch: int = 1) -> torch.Tensor:
    """(factor, batch, n, n), entries N(0, 1 / n)."""
    generator = torch.Generator().manual_seed(n)
    return torch.randn(depth, batch, n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)


@pytest.mark.parametrize("carry, gain", [(.7, .6), (.95, .05), (0.0, 1.0)])
def test_largest_residual_exponent_is_growth_of_a_vector(carry, gain):
    """ln ||J u|| of layers a I + g G grows by lambda_1 a layer: u is the first factor, of one column."""
    n, depth, many = 6, 15, 500
    layers = carry * torch.eye(n, dtype=torch.float64) + gain * gaussian_factors(n, depth, many)
    u = torch.nn.functional.normalize(torch.ones(many, n, 1, dtype=torch.float64), dim=1)
    growth = product_svd([u, *layers]).log_singular_values[:, 0].numpy()
    z = (growth.mean() - depth * theory.residual_largest_exponent(n, carry, gain)) / (growth.std() / math.sqrt(many))
    assert abs(z) < LARGEST_Z


@pytest.mark.parametrize("carry, gain", [(.731, .269), (.4, .8)])
def test_residual_exponents_are_the_free_law(carry, gain):
    """ln s_i / L at quantile (n - i + 1/2) / n, to O(1 / (n - i + 1)), as Newman's, and O(ln n / L)."""
    n, depth = 40, 400
    layers = carry * torch.eye(n, dtype=torch.float64) + gain * gaussian_factors(n, depth)
    exponents = product_svd(layers.unbind(0)).log_singular_values[0].numpy() / depth
    place = n - np.arange(n)  # n - i + 1
    predicted = theory.residual_lyapunov_exponents((place - .5) / n, carry, gain)
    assert (np.abs(exponents - predicted) < 0.01 + 0.5 / place).all()


def test_masked_exponents_add_up_to_the_volume():
    """k live rows in every layer: the k finite log singular values sum to L - 1 masked layers and a first k x n one."""
    n, k, depth, many = 10, 4, 12, 600
    generator = torch.Generator().manual_seed(0)
    rank = torch.rand(depth, many, n, generator=generator).argsort(-1)
    factors = (rank < k)[..., None] * gaussian_factors(n, depth, many) * math.sqrt(2)
    logs = product_svd(factors.unbind(0)).log_singular_values.numpy()
    assert (np.isfinite(logs).sum(1) == k).all()
    first, masked = theory.lyapunov_exponents(n, 2.0)[:k], theory.lyapunov_exponents(n, 2.0, live=k)[:k]
    variance = theory.lyapunov_variance(n)[:k].sum() + (depth - 1) * theory.lyapunov_variance(k).sum()
    predicted = theory.Moments(first.sum() + (depth - 1) * masked.sum(), variance)
    assert np.abs(z_scores(logs[:, :k].sum(1), predicted)).max() < LARGEST_Z


# --- infinite width --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation, weights, q, depth", [
    ("tanh", "orthogonal", .1, 16), ("tanh", "gaussian", .1, 6), ("hard_tanh", "orthogonal", .25, 8),
    ("erf", "orthogonal", .1, 8), ("linear", "gaussian", .2, 5),
])
def test_variance_of_the_spectrum_at_the_fixed_point(activation, weights, q, depth):
    """sigma^2 / m_1^2 of one net of width 200 within 15 %: the first body layer starts at q*, where the net then stays.

    Finite width shifts it by O(1/n), some 2 % here (3 % at width 400 in the sources); nets vary by some 4 %.
    """
    width = 200
    length = float(ACTIVATIONS[activation].mean_square(np.float64(q)))
    weight_var = 1 / float(ACTIVATIONS[activation].squared_slope(np.float64(q)))
    net = initialize(PlainNet(width, width, depth + 1, 1, activation).double(),
                     "orthogonal" if weights == "orthogonal" else "lecun_normal", seed=3, gain=math.sqrt(weight_var),
                     bias_var=max(0.0, q - weight_var * length))
    x = torch.randn(1, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x *= math.sqrt(length / x.square().mean())
    square = np.exp(2 * jacobian_spectrum(net, x, part="body").log_singular_values[0].numpy())
    measured = square.var() / square.mean() ** 2
    assert measured == pytest.approx(theory.spectrum_variance(activation, depth, weights, q), rel=.15)


def test_a_law_is_worked_out_once_for_each_cell_and_is_the_callers_own():
    """Equal cells ask once, other ones anew, nan being equal to nan; what a caller does to its frame stays with it."""
    asked = []

    def law(cell: pd.Series) -> pd.DataFrame:
        asked.append(cell["depth"])
        return pd.DataFrame({"chi": [cell["depth"] * 1.0], "gain": [cell["gain"]]})

    cells = [pd.Series({"net": "plain", "depth": depth, "gain": np.nan}) for depth in (3, 3, 4)]
    first = layers.worked_out(law, cells[0])
    first["chi"] = 0.0
    assert [layers.worked_out(law, cell)["chi"][0] for cell in cells] == [3.0, 3.0, 4.0]
    assert asked == [3, 4] and np.isnan(layers.worked_out(law, cells[2])["gain"][0])
