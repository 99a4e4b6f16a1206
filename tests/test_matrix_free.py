"""Spectra from products: against dense singular values, closed forms, and the intervals' own promise."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flowstudy.measure.numerics import matrix_free, stochastic_spectrum
from flowstudy.measure.numerics.linear_map import LinearMap, jacobian_map
from flowstudy.measure.numerics.matrix_free import largest_singular_values, smallest_singular_values
from flowstudy.measure.numerics.stochastic_spectrum import mean_squared_singular_value, spectral_density
from flowstudy.nets import HighwayNet, PlainNet, initialize


def dense_map(matrix: Tensor) -> LinearMap:
    return LinearMap(matrix.shape[1], matrix.shape[0], lambda rows: rows @ matrix.mT, lambda rows: rows @ matrix,
                     matrix.device)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(outputs: int, inputs: int, values: Tensor | list[float]) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    s = torch.as_tensor(values, dtype=torch.float64)
    left = torch.linalg.qr(normal(outputs, len(s), seed=1)).Q
    return left * s @ torch.linalg.qr(normal(inputs, len(s), seed=2)).Q.mT


def dense_jacobian(model: nn.Module, *shape: int) -> Tensor:
    """Row by row: one autograd call per output."""
    model, sample = model.double().eval().requires_grad_(False), normal(*shape).requires_grad_()
    y = model(sample.clone().unsqueeze(0)).flatten()
    return torch.stack([torch.autograd.grad(one, sample, retain_graph=True)[0].flatten() for one in y])


def conv_net(channels: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                         nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.GELU())


def deep_net(net: type[nn.Module], depth: int, width: int = 100) -> nn.Module:
    return initialize(net(width, width, depth, width, "tanh").double(), "he_normal", seed=1)


class LastHidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


MODELS = {
    "convolutional": (conv_net, (2, 6, 8)),
    "in-place first": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(7, 9), nn.LayerNorm(9)), (7,)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (5, 8)),
    "lstm": (LastHidden, (4, 6)),
    "constant": (lambda: nn.Threshold(1e9, 2.0), (3,)),
}


@pytest.mark.parametrize("model", MODELS)
def test_map_is_the_jacobian_and_its_transpose(model):
    """J and its transpose on rows equal products with autograd's dense J, whatever the chunk, call after call."""
    torch.manual_seed(0)
    make, shape = MODELS[model]
    net = make()
    jacobian = dense_jacobian(net, *shape)
    sample = normal(*shape)
    outputs, inputs = jacobian.shape
    for chunk in (None, 2):
        net.requires_grad_(chunk is None)
        linear_map = jacobian_map(lambda x: net(x.unsqueeze(0)), sample, chunk=chunk)
        assert (linear_map.inputs, linear_map.outputs) == (inputs, outputs)
        for seed in range(2):   # the second call too: torch.func.linearize fails there
            v, u = normal(5, inputs, seed=seed), normal(5, outputs, seed=seed)
            assert_close(linear_map.forward(v), v @ jacobian.mT, rtol=1e-12, atol=1e-13)
            assert_close(linear_map.backward(u), u @ jacobian, rtol=1e-12, atol=1e-13)
            assert not linear_map.forward(v).requires_grad
    assert torch.equal(sample, normal(*shape))


MATRICES = {
    "gaussian": lambda: normal(120, 90),
    "wide": lambda: normal(20, 300),
    "tall": lambda: normal(300, 20),
    "convolutional": lambda: dense_jacobian(conv_net(), 2, 8, 8),
    "clusters": lambda: with_values(150, 140, [1.0] * 5 + [0.5] * 4 + torch.linspace(0.4, 0, 131).tolist()),
    "eightfold": lambda: with_values(300, 300, [1.0] * 8 + torch.linspace(0.9, 0, 292).tolist()),  # scipy's svds fails
    "near cluster": lambda: with_values(90, 90, (1 + 1e-9 * torch.arange(12).double()).tolist() + [0.3] * 60),
    "two values": lambda: with_values(90, 90, [2.0] * 5 + [1.0] * 85),
    "graded": lambda: with_values(80, 90, torch.logspace(0, -12, 80, dtype=torch.float64)),
    "steep": lambda: with_values(40, 30, torch.logspace(0, -12, 10, dtype=torch.float64)),
    "low rank": lambda: with_values(90, 70, [5.0, 4.0, 3.0, 3.0, 1.0]),
    "identity": lambda: torch.eye(60, dtype=torch.float64),
    "zero": lambda: torch.zeros(30, 40, dtype=torch.float64),
    "vanishing": lambda: 1e-200 * normal(60, 50),
    "exploding": lambda: 1e200 * normal(60, 50),
    "one entry": lambda: normal(1, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_largest_equal_dense(matrix):
    """The 10 largest: to their residuals (all of them together: in a cluster they swap), to 1e-6 relative where dense
    is so good; -inf exactly beyond the rank; whatever the block."""
    jacobian = MATRICES[matrix]()
    k = min(10, *jacobian.shape)
    expected = torch.linalg.svdvals(jacobian)[:k]
    linear_map = dense_map(jacobian)
    alive = expected > linear_map.floor * expected[0]
    for block in (None, k, 3 * k):
        found = largest_singular_values(linear_map, k, block=block)
        assert found.converged
        assert torch.equal(found.log_values == -math.inf, ~alive)
        error = (found.log_values[alive] - expected[alive].log()).expm1().abs() * expected[alive] / expected[0]
        assert (error <= found.residuals[alive].norm() + 1e-13).all()               # 1e-13: dense svd, exp and log
        large = expected[alive] > 1e-7 * expected[0]
        assert (error[large] < 1e-6 * (expected[alive] / expected[0])[large]).all()
        assert found.residuals.max() < 1e-8 + linear_map.floor


def test_basis_stays_orthonormal():
    """New directions 1e-11 of the size of what the basis already holds still come out at right angles to it."""
    basis, rest = torch.linalg.qr(normal(200, 30)).Q.mT.split((24, 6))
    rows = normal(8, 24) @ basis + normal(8, 6) * torch.logspace(0, -11, 6, dtype=torch.float64) @ rest
    known, beyond, new = matrix_free.split(rows, basis, 1e-13)
    assert new.shape == rest.shape
    assert_close(new @ torch.cat([basis, new]).mT, torch.eye(30, dtype=torch.float64)[24:], rtol=0, atol=1e-14)
    assert_close(known @ basis + beyond @ new, rows, rtol=0, atol=1e-13)


def test_exhausted_krylov_space_ends_at_once():
    """Rank 3, or one value only: as many products as that takes, not as many as the size."""
    for jacobian, count in ((with_values(400, 300, [3.0, 2.0, 2.0]), 3), (torch.eye(300, dtype=torch.float64), 10)):
        found = largest_singular_values(dense_map(jacobian), 10)
        assert found.converged
        assert found.log_values.isfinite().sum() == count
        assert found.products <= 60


def test_restarts_change_nothing(monkeypatch):
    """A basis of 4 blocks at most, restarted many times, gives the values of one that is never restarted."""
    linear_map = dense_map(normal(300, 200))
    expected = largest_singular_values(linear_map, 4)
    monkeypatch.setattr(matrix_free, "BASIS_BLOCKS", 1)
    found = largest_singular_values(linear_map, 4)
    assert found.converged
    assert found.products > expected.products
    assert_close(found.log_values, expected.log_values, rtol=0, atol=1e-12)


def test_stopped_early_values_are_lower_bounds_within_their_residual():
    """Out of products: not converged, each value no more than the true one and within its residual of some true one."""
    jacobian = normal(300, 200)
    expected = torch.linalg.svdvals(jacobian)
    found = largest_singular_values(dense_map(jacobian), 5, max_products=90)
    s = found.log_values.exp()
    assert found.products <= 90
    assert not found.converged
    assert (s < expected[:5]).all()
    distance = (s[:, None] - expected).abs().amin(1)
    assert (distance <= found.residuals * s[0]).all()
    assert found.residuals.max() > 1e-3


def test_residuals_are_what_the_matrices_leave():
    """Of a hand-made step of the bidiagonalisation: |J^T u - s v| of the core's singular vectors, by numpy; and the
    residuals of the answer are these over the largest value, J v - s u being 0 by construction."""
    jacobian = normal(30, 20)
    linear_map = dense_map(jacobian)
    state = matrix_free.started(linear_map, 4, torch.Generator().manual_seed(0))
    for _ in range(2):
        state = matrix_free.grown(state, linear_map)
    u, s, v = np.linalg.svd(state.core.numpy(), full_matrices=False)
    u, v = u.T @ state.left.numpy(), v @ state.right.numpy()
    expected = np.linalg.norm(u @ jacobian.numpy() - s[:, None] * v, axis=1)
    values, residual = state.values()
    np.testing.assert_allclose(values, s, rtol=1e-13)
    np.testing.assert_allclose(residual, expected, atol=1e-13)
    found = matrix_free.stated(state, linear_map, 3, 1e-8, settled=False)
    np.testing.assert_allclose(found.residuals, expected[:3] / s[0], rtol=1e-10)
    assert found.residuals.min() > 1e-2


def test_wrong_transpose_is_noticed():
    """Residuals come from products of their own: a backward that is not forward's transpose cannot converge."""
    jacobian = normal(40, 30)
    other = jacobian + 1e-5 * normal(40, 30, seed=1)
    found = largest_singular_values(LinearMap(30, 40, lambda rows: rows @ jacobian.mT, lambda rows: rows @ other), 3)
    assert not found.converged
    assert found.residuals.max() > 1e-7


def test_smallest_of_a_product_from_its_inverse():
    """Solves with the factors give the 3 smallest values of a product whose float64 svd has lost them."""
    factors = [with_values(12, 12, torch.logspace(0, -4, 12, dtype=torch.float64)) for _ in range(6)]
    inverses = [factor.inverse() for factor in factors]   # condition 1e4: right to 1e-12

    def solve(rows: Tensor) -> Tensor:
        for inverse in reversed(inverses):
            rows = rows @ inverse.mT
        return rows

    def solve_transposed(rows: Tensor) -> Tensor:
        for inverse in inverses:
            rows = rows @ inverse
        return rows

    found = smallest_singular_values(LinearMap(12, 12, solve, solve_transposed), 3)
    from mpmath import matrix, mp
    with mp.workdps(80):
        product = matrix(factors[0].tolist())
        for factor in factors[1:]:
            product = matrix(factor.tolist()) * product
        smallest = sorted(float(mp.log(s)) for s in mp.svd_r(product, compute_uv=False))[:3]
    assert found.converged
    assert_close(found.log_values, torch.tensor(smallest, dtype=torch.float64), rtol=0, atol=1e-9)


def identity_like() -> Tensor:
    return torch.eye(150, dtype=torch.float64) + 0.1 * normal(150, 150) / 150**0.5


COVERAGE = {
    "convolutional": lambda: dense_jacobian(conv_net(), 2, 8, 8),                 # no leader
    "deep": lambda: dense_jacobian(deep_net(PlainNet, 50), 100),                  # 0.6 of the square sum in one value
    "highway": lambda: dense_jacobian(deep_net(HighwayNet, 20), 100),
    "identity-like": identity_like,
    "one leader": lambda: with_values(150, 150, [100.0] + [1.0] * 149),           # where plain Student held 86 to 90 %
}


@pytest.mark.parametrize("queries", [16, 64])
@pytest.mark.parametrize("spectrum", COVERAGE)
def test_interval_holds_the_truth(spectrum, queries):
    """At 95 % asked, at least 93 of 100 seeds.

    Over 500 seeds each of 19 spectra the coverage was 96 to 100 %, mostly 97 to 99. Fewer than 93 of 100 hold with
    probability 0.05 at a coverage of 96 %, 0.01 at 97 %, 0.001 at 98 %; the seeds here are fixed, and give 96 to 100.
    """
    jacobian = COVERAGE[spectrum]()
    truth = jacobian.square().sum().item() / jacobian.shape[1]
    linear_map = dense_map(jacobian)
    found = [mean_squared_singular_value(linear_map, queries=queries, seed=seed) for seed in range(100)]
    assert sum(one.low <= truth <= one.high for one in found) >= 93
    assert all(one.low < one.estimate < one.high and one.queries == queries for one in found)
    estimates = torch.tensor([one.estimate for one in found], dtype=torch.float64)
    z = (estimates.mean() - truth) / (estimates.std() / 10)
    assert abs(z) < 4.5                                                           # unbiased
    widths = torch.tensor([one.high - one.low for one in found], dtype=torch.float64)
    assert widths.median() < 12 * (estimates - truth).square().mean().sqrt()      # and not honest by being useless


@pytest.mark.parametrize("matrix", ["wide", "tall", "identity", "zero", "one entry", "low rank"])
def test_mean_square_is_exact_where_it_can_be(matrix):
    """As many queries as the smaller side; or the identity, or a rank below queries / 4, whatever the draws."""
    jacobian = MATRICES[matrix]()
    truth = jacobian.square().sum().item() / jacobian.shape[1]
    queries = 24 if matrix in ("identity", "low rank") else 300
    found = mean_squared_singular_value(dense_map(jacobian), queries=queries)
    assert found.queries == min(queries, *jacobian.shape)
    assert found.low <= truth <= found.high
    assert found.high - found.low <= 1e-12 * truth


def test_density_is_gauss_quadrature():
    """Moments of s**2 to order 3 in every start, weights sum to 1: the quadrature of the starts' own moments.

    As many steps as values: E of a moment is tr (J^T J)**p / n, met within 4.5 standard errors over the starts. The
    share of zeros and the cumulative share likewise.
    """
    values = torch.cat([torch.linspace(0.2, 2, 60, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)])
    jacobian = with_values(90, 80, values)
    density = spectral_density(dense_map(jacobian), queries=40, steps=12)
    assert density.log_values.shape == density.weights.shape == (40, 12)
    assert_close(density.weights.sum(1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-13)
    assert (density.log_values.diff(dim=1) >= 0).all()
    for power in (1, 2, 3, 5):
        moments = (density.weights * density.log_values.exp() ** (2 * power)).sum(1)
        z = (moments.mean() - values.pow(2 * power).mean()) / (moments.std() / 40**0.5)
        assert abs(z) < 4.5
    points = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    share, error = spectral_density(dense_map(jacobian), queries=40, steps=80).cumulative(points.log())
    expected = (values[:, None] <= points).double().mean(0)
    assert ((share - expected).abs() < 4.5 * error).all()
    assert error.max() < 0.02


def test_density_moments_are_exact_for_each_start():
    """Gauss: sum of w s**(2 p) = v^T (J^T J)**p v for p < 2 steps, v the start drawn from the seed."""
    jacobian = normal(70, 50)
    density = spectral_density(dense_map(jacobian), queries=3, steps=4, seed=5)
    v = torch.randn(3, 50, generator=stochastic_spectrum.own_generator(5), dtype=torch.float64)
    v = v / v.norm(dim=1, keepdim=True)
    for power in range(8):
        expected = torch.einsum("qi,ij,qj->q", v, torch.linalg.matrix_power(jacobian.mT @ jacobian, power), v)
        assert_close((density.weights * density.log_values.exp() ** (2 * power)).sum(1), expected, rtol=1e-12, atol=0)


def test_starts_are_no_rows_of_a_matrix_of_the_same_seed():
    """|J|_F^2 / n of a normal matrix from the generator of the same seed: 1 per row, where its rows as starts see 2.

    Mean over seeds, z < 4.5; the sampled moment, and the estimate, whose interval holds it in 95 % of 40 seeds.
    """
    gaps, inside = [], 0
    for seed in range(40):
        jacobian = normal(60, 60, seed=seed)
        truth = jacobian.square().sum().item() / 60
        density = spectral_density(dense_map(jacobian), queries=4, steps=4, seed=seed)
        gaps.append((density.weights * density.log_values.exp().square()).sum(1).mean().item() / truth - 1)
        found = mean_squared_singular_value(dense_map(jacobian), queries=16, seed=seed)
        inside += found.low <= truth <= found.high
    gaps = torch.tensor(gaps)
    assert abs(gaps.mean()) < 4.5 * gaps.std() / 40**0.5 and gaps.std() / 40**0.5 < 0.03
    assert inside >= 32  # 38 expected; P(31 or fewer) = 1.3e-4


@pytest.mark.parametrize("matrix", ["identity", "zero", "vanishing", "two values", "low rank", "one entry"])
def test_density_of_few_values(matrix):
    """Krylov spaces that end at once: nodes are the values themselves, zeros are -inf, spare nodes weigh nothing."""
    jacobian = MATRICES[matrix]()
    log_values = torch.linalg.svdvals(jacobian).log()
    density = spectral_density(dense_map(jacobian), queries=6, steps=60)
    heavy = density.weights > 1e-12
    nearest = (density.log_values[heavy].exp() - log_values[:, None].exp()).abs().amin(0)
    assert (nearest <= 1e-12 * log_values[0].exp()).all()
    assert_close(density.weights.sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
    if matrix == "low rank":
        zeros = (density.weights * (density.log_values == -math.inf)).sum(1)
        assert abs(zeros.mean() - 65 / 70) < 4.5 * zeros.std() / 6**0.5


def test_density_does_not_depend_on_its_memory(monkeypatch):
    """One start at a time gives what all at once give."""
    linear_map = dense_map(MATRICES["clusters"]())
    together = spectral_density(linear_map, queries=5, steps=20)
    monkeypatch.setattr(stochastic_spectrum, "KRYLOV_MEMORY", 1)
    apart = spectral_density(linear_map, queries=5, steps=20)
    for point in torch.tensor([0.05, 0.3, 0.45, 0.7]).double().log():
        (share, error), (expected, its_error) = (d.cumulative(point[None]) for d in (apart, together))
        assert_close(share, expected, rtol=0, atol=1e-10)
        assert_close(error, its_error, rtol=1e-6, atol=0)  # has residuals at rounding level in it


CALLS = {
    "largest": lambda linear_map, seed: largest_singular_values(linear_map, 3, seed=seed).log_values,
    "mean square": lambda linear_map, seed: torch.tensor(
        [mean_squared_singular_value(linear_map, queries=12, seed=seed).estimate]),
    "density": lambda linear_map, seed: spectral_density(linear_map, queries=2, steps=5, seed=seed).log_values,
}


@pytest.mark.parametrize("call", CALLS)
def test_draws_come_from_the_seed_alone(call):
    """The same numbers for a seed; the global random state is neither used nor changed."""
    linear_map = dense_map(normal(60, 40))
    once = CALLS[call](linear_map, 0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(CALLS[call](linear_map, 0), once)
    assert torch.equal(torch.get_rng_state(), before)
    if call != "largest":   # that has one answer
        assert not torch.equal(CALLS[call](linear_map, 1), once)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("call", CALLS)
def test_nan_in_nan_out(call, bad):
    """A NaN in the Jacobian, and an infinity, gives NaN results, not an exception and not a number."""
    jacobian = normal(40, 30)
    jacobian[3, 4] = bad
    result = CALLS[call](dense_map(jacobian), 0)
    assert not result.isfinite().any()
    if call == "largest":
        found = largest_singular_values(dense_map(jacobian), 3)
        assert not found.converged
        assert found.residuals.isnan().all()
    if call == "mean square" and math.isnan(bad):
        found = mean_squared_singular_value(dense_map(jacobian), queries=12)
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_same_numbers_on_every_device(device):
    """Draws are the CPU's, so all three agree with the CPU's answers to rounding."""
    jacobian = normal(80, 60)
    here, there = dense_map(jacobian), dense_map(jacobian.to(device))
    for call in CALLS.values():
        assert_close(call(there, 0), call(here, 0), rtol=1e-9, atol=1e-9)


ERRORS = {
    "k": (lambda m: largest_singular_values(m, 31),
          "largest_singular_values: `k` must be from 1 to 30, the number of singular values of a 40 x 30 Jacobian, "
          "got 31. Pass k=30."),
    "k 0": (lambda m: largest_singular_values(m, 0), "largest_singular_values: `k` must be from 1 to 30, .*Pass k=1"),
    "block": (lambda m: largest_singular_values(m, 3, block=2),
              "largest_singular_values: `block` must be at least k = 3, got 2. Pass None for k + 2."),
    "tolerance": (lambda m: largest_singular_values(m, 3, tolerance=0.0),
                  "largest_singular_values: `tolerance` must be between 0 and 1, got 0.0"),
    "products": (lambda m: largest_singular_values(m, 3, max_products=4),
                 "largest_singular_values: `max_products` must be at least .* = 17, got 4. Pass None"),
    "not square": (lambda m: smallest_singular_values(m, 3),
                   "smallest_singular_values: `inverse` must be square, got 30 inputs and 40 outputs. Use the dense"),
    "queries": (lambda m: mean_squared_singular_value(m, queries=3),
                "mean_squared_singular_value: `queries` must be at least 8, got 3. 64"),
    "confidence": (lambda m: mean_squared_singular_value(m, confidence=95.0),
                   "mean_squared_singular_value: `confidence` must be between 0 and 1, got 95.0"),
    "steps": (lambda m: spectral_density(m, steps=0), "spectral_density: `queries` and `steps` must be at least 1"),
    "empty": (lambda m: jacobian_map(torch.tanh, torch.ones(0)), "jacobian_map: `sample` must have at least one entry"),
    "no output": (lambda m: jacobian_map(lambda x: x[:0], torch.ones(2)),
                  "jacobian_map: `function` must return at least"),
    "tuple": (lambda m: jacobian_map(lambda x: (x, x), torch.ones(2)),
              "jacobian_map: `function` must return one real tensor, got tuple. Pick"),
    "integers": (lambda m: jacobian_map(lambda x: x.argsort(), torch.ones(2)),
                 "jacobian_map: `function` must return one real tensor, got torch.int64. Pick"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_errors_say_what_to_do(case):
    """Bad input gets one readable line that names the argument and the rule."""
    call, message = ERRORS[case]
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(ValueError if case not in ("tuple", "integers") else TypeError, match=f"^{pattern}") as caught:
        call(dense_map(normal(40, 30)))
    assert "\n" not in str(caught.value)
