"""Exact fluctuations: tabulated values, sums over the law done by hand, and the two descriptions that must agree."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import gammaln, polygamma, psi

from flowstudy import theory

N = [6, 16, 64, 100, 256, 1024]
LINEAR, RELU = ("linear", 1.0), ("relu", 0.5)

# --- tabulated values: computed, given, half a unit of the last digit ------------------------------------------------

TABLE = {
    "walk, linear, exact": (lambda: theory.random_walk_gain("linear", N, exact=True),
                            [1.091894, 1.032414, 1.007884, 1.005029, 1.001958, 1.000489], 5e-7),
    "walk, linear, published": (lambda: theory.random_walk_gain("linear", N),
                                [1.086904, 1.031743, 1.007843, 1.005013, 1.001955, 1.000488], 5e-7),
    "walk, ReLU, exact": (lambda: theory.random_walk_gain("relu", N, exact=True),
                          [1.848902, 1.544611, 1.442861, 1.432304, 1.421181, 1.415944], 5e-7),
    "walk, ReLU, published": (lambda: theory.random_walk_gain("relu", N),
                              [1.973694, 1.544668, 1.442033, 1.431709, 1.420921, 1.415876], 5e-7),
    "walk, ReLU, orthogonal": (lambda: theory.random_walk_gain("relu", N[1:5], exact=True, weights="orthogonal"),
                               [1.496116, 1.431574, 1.425136, 1.418404], 5e-7),
    "walk, tanh": (lambda: theory.random_walk_gain("tanh", [69, 100]), [1.13, 1.13], 0),
    "ReLU layer, mean": (lambda: theory.log_jacobian_norm([16, 64, 100, 256, 512], 1, "relu").mean,
                         [-.176397324, -.040108599, -.025420886, -.009828659, -.004898479], 5e-10),
    "ReLU layer, variance": (lambda: theory.log_jacobian_norm([16, 64, 100, 256, 512], 1, "relu").variance,
                             [.419593394, .082997351, .051939992, .019818709, .009836836], 5e-10),
    "linear layer, mean": (lambda: theory.log_jacobian_norm([64, 256], 1, "linear").mean, [-.015706372, -.003911336],
                           5e-10),
    "linear layer, variance": (lambda: theory.log_jacobian_norm([64, 256], 1, "linear").variance,
                               [.031743367, .007843097], 5e-10),
    "n=32 L=20": (lambda: theory.log_jacobian_norm(32, 20, "relu"), [-1.6508, 3.5500], 5e-5),
    "n=32 L=20, input gradient mean": (lambda: theory.log_input_gradient_norm(32, 20, "relu").mean, [-1.6824], 5e-5),
    "n=32 L=20, input gradient": (lambda: theory.log_input_gradient_norm(32, 20, "relu").variance, [3.61], 5e-3),
    "n=32 L=20, weight gradient mean": (lambda: theory.log_weight_gradient_norm(32, 20, "relu").mean, [-2.3440], 5e-5),
    "n=32 L=20, weight gradient": (lambda: theory.log_weight_gradient_norm(32, 20, "relu").variance, [3.55], 5e-3),
    "n=32 L=20, orth mean": (lambda: theory.log_jacobian_norm(32, 20, "relu", "orthogonal").mean, [-1.0193], 5e-5),
    "n=32 L=20, orthogonal": (lambda: theory.log_jacobian_norm(32, 20, "relu", "orthogonal").variance, [2.26], 5e-3),
    "fluctuation constant": (lambda: np.array([64, 256]) * theory.log_jacobian_norm([64, 256], 1, "relu").variance,
                             [5.31, 5.07], 5e-3),
}


@pytest.mark.parametrize("case", TABLE)
def test_tabulated_values(case):
    compute, given, half_a_digit = TABLE[case]
    assert_allclose(np.atleast_1d(compute()), given, rtol=0, atol=half_a_digit * 1.001)


# --- the law, by hand ------------------------------------------------------------------------------------------------


def live_law(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Every number of live units but none, and its probability given that there is one, in exact integers."""
    weight = np.array([math.comb(width, k) / (2**width - 1) for k in range(1, width + 1)])
    return np.arange(1, width + 1), weight


@pytest.mark.parametrize("width", [1, 2, 3, 17, 200])
def test_relu_sums_over_every_number_of_live_units(width):
    """Mean and variance of ln chi2_k and of ln Beta, summed over all k; 200 units leave the tails out, within 1e-13."""
    k, weight = live_law(width)
    mean, within = weight @ psi(k / 2), weight @ polygamma(1, k / 2)
    between = weight @ (psi(k / 2) - mean) ** 2
    assert_allclose(theory.log_jacobian_norm(width, 1, "relu", weight_var=1.0),
                    (math.log(2 / width) + mean, within + between), rtol=1e-12, atol=1e-13)
    assert_allclose(theory.log_jacobian_norm(width, 1, "relu", "orthogonal", weight_var=1.0),
                    (mean - psi(width / 2), within + between - polygamma(1, width / 2)), rtol=1e-12, atol=1e-13)


def test_a_single_unit_that_is_live_keeps_an_orthogonal_norm():
    """Width 1, ReLU, W = +-1, not dead: ln ||J u||^2 = 0 for sure. Linear orthogonal nets likewise at any width."""
    assert_allclose(theory.log_jacobian_norm(1, 5, "relu", "orthogonal", weight_var=1.0), (0, 0), atol=1e-14)
    assert_allclose(theory.log_jacobian_norm([1, 7, 500], 9, "linear", "orthogonal").variance, 0, atol=1e-15)


@pytest.mark.parametrize("activation, live", [LINEAR, RELU])
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("width", [1, 4, 33])
def test_squared_norm_by_hand(width, weights, activation, live):
    """E and E of the square of ||J u||^2 from the moments of chi-squared and Beta variables, dead layers included."""
    k = np.arange(width + 1)
    probability = stats.binom.pmf(k, width, live)
    second = probability @ (k * (k + 2))
    per_layer = second / (width**2 if weights == "gaussian" else width * (width + 2)) / live**2
    mean, variance = theory.squared_jacobian_norm(width, 6, activation, weights)
    assert mean == pytest.approx(1, rel=1e-14)
    assert variance + 1 == pytest.approx(per_layer**6, rel=1e-12)


def test_fourth_moments_in_closed_form():
    """E ||J u||^4 per layer: 1 + 2/n linear, 1 + 5/n ReLU, (n + 5)/(n + 2) orthogonal ReLU."""
    n = np.array([1, 10, 400])
    for activation, weights, exact in (("linear", "gaussian", 1 + 2 / n), ("relu", "gaussian", 1 + 5 / n),
                                       ("linear", "orthogonal", 1 + 0 / n), ("relu", "orthogonal", (n + 5) / (n + 2))):
        mean, variance = theory.squared_jacobian_norm(n, 1, activation, weights)
        assert_allclose(variance + mean**2, exact, rtol=1e-14)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_two_descriptions_of_the_same_gaussian_moments(activation):
    """E ||J u||^2 is E of the mean square; its variance exceeds the mean square's, which averages over directions."""
    norm, mean_square = (f(20, 15, activation, weight_var=1.1)
                         for f in (theory.squared_jacobian_norm, theory.mean_squared))
    assert norm.mean == pytest.approx(mean_square.mean, rel=1e-13)
    assert mean_square.variance < norm.variance
    assert theory.mean_squared(1, 15, activation).variance == pytest.approx(
        theory.squared_jacobian_norm(1, 15, activation).variance, rel=1e-13)


def test_largest_exponent_is_the_linear_mean():
    """Newman's lambda_1 is half the mean of ln ||J u||^2 per layer, width by width."""
    for width in (1, 5, 64):
        assert 2 * theory.lyapunov_exponents(width, 1.7)[0] == pytest.approx(
            theory.log_jacobian_norm(width, 1, "linear", weight_var=1.7).mean, abs=1e-14)


@pytest.mark.parametrize("activation, constant", [("linear", 2), ("relu", 5)])
def test_wide_nets_fluctuate_as_depth_over_width(activation, constant):
    """Variance -> 2 L/n linear, 5 L/n ReLU, mean -> minus half of it: log-normal with mean 1; the next order is 1/n."""
    for n in (1e4, 1e6):
        mean, variance = theory.log_jacobian_norm(n, 30, activation)
        assert variance * n / 30 == pytest.approx(constant, rel=10 / n)
        assert mean / variance == pytest.approx(-0.5, rel=10 / n)


def test_beyond_float64_is_inf():
    """No nan, no warning: narrow deep nets whose moments overflow while their logs do not."""
    assert theory.squared_jacobian_norm(4, 3000, "relu") == (1, math.inf)
    assert theory.mean_squared(4, 3000, "relu") == (1, math.inf)
    assert theory.second_moment(4, 3000, "relu") == math.inf
    assert theory.squared_jacobian_norm(4, 3000, "linear", weight_var=9.0) == (math.inf, math.inf)
    assert theory.log_jacobian_norm(4, 3000, "relu").variance < 10_000


# --- gradients: readout and first layer ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_gradients_are_jacobians_with_a_readout(activation):
    """The input gradient has one masked layer's moments replaced by the read-out's, and an unmasked first layer."""
    width, depth = 24, 9
    unmasked = theory.log_jacobian_norm(width, 1, "linear", weight_var=1.0)
    masked = theory.log_jacobian_norm(width, 1, activation, weight_var=1.0)
    got = theory.log_input_gradient_norm(width, depth, activation, weight_var=1.8, readout_var=3.0)
    assert got.mean == pytest.approx(math.log(3) + depth * (math.log(1.8) + masked.mean) + unmasked.mean, abs=1e-13)
    assert got.variance == pytest.approx(depth * masked.variance + unmasked.variance, rel=1e-13)
    weight = theory.log_weight_gradient_norm(width, depth, activation, weight_var=1.8, readout_var=3.0)
    assert weight.mean == pytest.approx(math.log(3) + (depth - 1) * math.log(1.8) + depth * masked.mean, abs=1e-13)
    assert weight.variance == pytest.approx(depth * masked.variance, rel=1e-13)


def test_first_orthogonal_layer_keeps_or_projects():
    """Into more dimensions an orthogonal first layer keeps the norm; into fewer it takes a Beta(n0/2, (n-n0)/2)."""
    same, more, fewer = (theory.log_input_gradient_norm(30, 4, "relu", "orthogonal", in_features=inputs)
                         for inputs in (None, 100, 10))
    assert more == pytest.approx(same, rel=1e-14)
    assert fewer.mean - same.mean == pytest.approx(psi(5) - psi(15), rel=1e-12)
    assert fewer.variance - same.variance == pytest.approx(polygamma(1, 5) - polygamma(1, 15), rel=1e-12)


def test_wide_input_gradients_fluctuate_as_their_factors():
    """Width 100,000: 50 masked layers give 5 / n each and the unmasked first layer 2 / n; the next order is 1 / n."""
    n = 1e5
    assert theory.log_input_gradient_norm(n, 50, "relu").variance * n == pytest.approx(5 * 50 + 2, rel=10 / n)


# --- random walk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_exact_random_walk_has_no_drift(activation, weights):
    """At weight_var g^2 the mean of ln ||J u||^2 is 0 at any depth and width."""
    for width in (1, 6, 50, 3000):
        g = theory.random_walk_gain(activation, width, exact=True, weights=weights)
        assert theory.log_jacobian_norm(width, 100, activation, weights, g**2).mean == pytest.approx(0, abs=1e-11)


def test_published_gains_are_fits():
    """g = exp(1/2N) has the exact leading term for linear units; ReLU's is 5/4 where the paper's fit has 1.2."""
    n = 1e5
    assert n * math.log(theory.random_walk_gain("linear", n, exact=True)) == pytest.approx(1 / 2, rel=1e-4)
    for exact, constant in ((True, 5 / 4), (False, 1.2)):
        log_g = math.log(theory.random_walk_gain("relu", n, exact=exact) / math.sqrt(2))
        assert n * log_g == pytest.approx(constant, rel=1e-4)


def test_drift_of_tanh_nets():
    """ln chi_1 at the tabulated gains in the limit, and the widths, given as whole numbers, at which the drift is 0."""
    gain = np.array([1.05, 1.13, 1.2])
    limit, narrow = (theory.random_walk_drift("tanh", n, gain) for n in (10**12, 1))
    assert_allclose(np.exp(limit), [1.002876, 1.016150, 1.033501], rtol=0, atol=5.1e-7)
    assert np.round((limit - narrow) / limit)[1:].tolist() == [69, 37]


def test_drift_is_what_the_exact_gain_removes():
    """Linear and ReLU: 2 ln(g / exact gain), Gaussian or orthogonal."""
    for activation in ("linear", "relu"):
        for weights in ("gaussian", "orthogonal"):
            exact = theory.random_walk_gain(activation, 30, exact=True, weights=weights)
            drift = theory.random_walk_drift(activation, 30, 1.3, weights=weights)
            assert drift == pytest.approx(2 * math.log(1.3 / exact), abs=1e-13)


# --- rank ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, depth", [(1, 3), (2, 1), (13, 4), (64, 10), (64, 100), (256, 100)])
def test_expected_rank_in_rational_arithmetic(width, depth):
    """The mean of the smallest of `depth` binomials, in exact fractions."""
    tail = [Fraction(sum(math.comb(width, k) for k in range(j, width + 1)), 2**width) for j in range(1, width + 1)]
    assert theory.expected_rank(width, depth) == pytest.approx(float(sum(p**depth for p in tail)), rel=1e-12)
    assert theory.expected_rank(width, depth, "linear") == width


@pytest.mark.parametrize("width", [1, 30, 100_000])
def test_expected_rank_of_two_layers_in_closed_form(width):
    """The smaller of two binomials: half the width less half of E |X - Y| = n C(2n, n) / 4^n."""
    log_gap = gammaln(2 * width + 1) - 2 * gammaln(width + 1) - 2 * width * math.log(2)
    assert theory.expected_rank(width, 2) == pytest.approx(width / 2 * (1 - math.exp(log_gap)), rel=1e-10)


def test_expected_rank_falls_from_half_the_width_to_zero():
    """One layer: n/2. Infinitely deep at fixed width: 0."""
    assert_allclose(theory.expected_rank([1, 10, 100001], 1), [.5, 5, 50000.5], rtol=1e-12)
    assert theory.expected_rank(4, 10**6) == pytest.approx(0, abs=1e-12)


# --- arrays, errors --------------------------------------------------------------------------------------------------


def test_arrays_broadcast():
    """Widths and depths, mean and variance alike."""
    width, depth = np.array([8, 30, 31]), np.array([[1], [50]])
    for f in (theory.log_jacobian_norm, theory.log_input_gradient_norm, theory.log_weight_gradient_norm,
              theory.squared_jacobian_norm, theory.mean_squared):
        for found, alone in zip(f(width, depth, "relu"), f(30, 50, "relu"), strict=True):
            assert found.shape == (2, 3)
            assert found[1, 1] == pytest.approx(alone, rel=1e-15)
    assert theory.expected_rank(width, depth).shape == (2, 3)


ERRORS = {
    "width 0": (partial(theory.log_jacobian_norm, 0, 3, "relu"), "`width` must be an integer of at least 1, got 0"),
    "depth 0": (partial(theory.log_jacobian_norm, 3, 0, "relu"), "`depth` must be an integer of at least 1, got 0"),
    "one bad depth": (partial(theory.log_jacobian_norm, 3, [1, -1], "relu"),
                      "`depth` must be an integer of at least 1"),
    "bool": (partial(theory.expected_rank, True, 3), "`width` must be an integer of at least 1, got True"),
    "tanh": (partial(theory.log_jacobian_norm, 3, 3, "tanh"), "`activation` must be one of linear, relu, got 'tanh'"),
    "weights": (partial(theory.log_jacobian_norm, 3, 3, "relu", "normal"), "`weights` must be one of gaussian, "),
    "variance": (partial(theory.log_weight_gradient_norm, 3, 3, "relu", weight_var=0.0), "`weight_var` must be posit"),
    "readout": (partial(theory.log_input_gradient_norm, 3, 3, "relu", readout_var=-1),
                "`readout_var` must be positive"),
    "rank of tanh": (partial(theory.expected_rank, 3, 3, "tanh"), "`activation` must be one of relu, linear, got"),
    "walk": (partial(theory.random_walk_gain, "gelu", 5), "`activation` must be one of linear, relu, tanh, got 'gelu'"),
    "exact tanh": (partial(theory.random_walk_gain, "tanh", 5, exact=True), "`activation` must be one of .* 1.13 is"),
    "drift of orthogonal tanh": (partial(theory.random_walk_drift, "tanh", 5, 1.0, weights="orthogonal"), "`weights`"),
    "published orthogonal": (partial(theory.random_walk_gain, "relu", 5, weights="orthogonal"), ".* pass exact=True"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_nonsense_is_refused(case):
    """One line that names the call, the argument and the rule."""
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=rf"^{call.func.__name__}: {message}") as caught:
        call()
    assert "\n" not in str(caught.value)
