"""Spectra of random products: tabulated values, identities between the formulas, and their limits."""

import math
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate
from scipy.special import digamma, polygamma

from flowstudy import theory

L = np.array([8, 32, 128])
FC = theory.fuss_catalan_moment
T = (0.25, 0.5, 0.9)


def last_digit(value: float) -> float:
    """What a value that is given to so many digits may be off by: half a unit of the last, with a little room."""
    return 0.51 * 10.0 ** -(len(repr(value).partition(".")[2]) if "e" not in repr(value) else 12)


# --- tabulated values: quantity, computed, given ---------------------------------------------------------------------

TABLE = {
    "Newman n=2": (lambda: theory.lyapunov_exponents(2), [-.28860783, -.98175501]),
    "Newman n=4": (lambda: theory.lyapunov_exponents(4), [-.13518142, -.3283286, -.63518142, -1.3283286]),
    "Newman n=64": (lambda: theory.lyapunov_exponents(64)[[0, 31, 63]], [-.00785319, -.34649227, -2.71462296]),
    "Newman n=64, sum": (lambda: theory.lyapunov_exponents(64).sum(), [-33.10797268]),
    "sum of logs n=16 L=20": (lambda: theory.sum_log_singular_values(16, 20), [-175.27, 55.526]),
    "Fuss-Catalan L=5": (lambda: FC([1, 2, 3], 5), [1.0, 6.0, 51.0]),
    "Fuss-Catalan edge": (lambda: theory.fuss_catalan_edge([2, 5, 10]), [6.75, 14.92992, 28.5311670611]),
    "edge, linear Gauss": (lambda: theory.spectrum_edge("linear", L), [23.0921, 88.3407, 349.298]),
    "edge, ReLU orth": (lambda: theory.spectrum_edge("relu", L, "orthogonal"), [20.3720, 85.6223, 346.580]),
    "edge, ReLU Gauss": (lambda: theory.spectrum_edge("relu", L, "gaussian"), [43.5490, 173.984, 695.884]),
    "variance, tanh orth": (lambda: theory.spectrum_variance("tanh", 1, "orthogonal", [1 / 64, .1, .5]),
                            [.001689, .039709, .299244]),
    "variance, tanh orth L=16": (lambda: theory.spectrum_variance("tanh", 16, "orthogonal", [1 / 64, .1, .5]),
                                 [.0270, .6353, 4.788]),
    "variance, hard-tanh orth": (lambda: theory.spectrum_variance("hard_tanh", 16, "orthogonal", [.25, 1]),
                                 [.7627, 7.44]),
    "variance, tanh Gauss": (lambda: theory.spectrum_variance("tanh", np.array([15, 16]), q=np.array([1 / 64, .1]))[1],
                             [16.6353]),
    "second moment n=64 L=10": (lambda: [theory.second_moment(64, 10, a) for a in ("linear", "relu")],
                                [11.986831016, 28.738065057]),
    "second moment n=128 L=50": (lambda: [theory.second_moment(128, 50, a) for a in ("linear", "relu")],
                                 [65.478419988, 265.777948955]),
    "second moment n=16 L=8": (lambda: [theory.second_moment(16, 8, a) for a in ("linear", "relu")],
                               [12.4111, 49.85]),
    "squared mean square": (lambda: [theory.mean_squared(64, 10, a).variance + 1 for a in ("linear", "relu")],
                            [1.02823679, 1.28997482]),
    "residual edge": (lambda: theory.residual_edge(40, [.952574127, .731058579], [.047425873, .268941421]),
                      [2.215, 26.57]),
}


@pytest.mark.parametrize("case", TABLE)
def test_tabulated_values(case):
    """Each to half a unit of the last digit given (literals drop a final zero: one digit more is asked of those)."""
    compute, given = TABLE[case]
    for computed, value in zip(np.atleast_1d(compute()), given, strict=True):
        assert computed == pytest.approx(value, rel=0, abs=last_digit(value))


# --- Fuss-Catalan ----------------------------------------------------------------------------------------------------


def test_moments_are_the_integers():
    """Python's exact binomials, to rounding; beyond float64 they are inf."""
    for depth in (1, 2, 7, 40):
        exact = [math.comb((depth + 1) * k, k) // (depth * k + 1) for k in range(12)]
        assert_allclose(FC(np.arange(12), depth), [float(value) for value in exact], rtol=1e-13)
    assert FC(400, 400) == math.inf


@pytest.mark.parametrize("depth", [1, 2, 5, 30])
def test_density_has_the_moments(depth):
    """Its integrals with x^k, k = 0..3, are the Fuss-Catalan numbers: Gauss-Legendre in y, x = edge sin(y)^(2 L + 2).

    The substitution takes out both singularities, x^(-L/(L+1)) at 0 and the square root at the edge.
    """
    node, weight = np.polynomial.legendre.leggauss(200)
    y, power = np.pi / 4 * (node + 1), 2 * depth + 2
    edge = theory.fuss_catalan_edge(depth)
    x = edge * np.sin(y) ** power
    mass = np.pi / 4 * weight * theory.fuss_catalan_density(x, depth) * x * power / np.tan(y)
    for k in range(4):
        assert (mass * x**k).sum() == pytest.approx(FC(k, depth), rel=1e-8)


def test_density_of_one_matrix_is_marchenko_and_pasturs():
    """sqrt(4/x - 1) / (2 pi), from 1e-300 to the edge, 0 outside, inf at 0."""
    x = np.array([1e-300, 1e-12, .1, 1.0, 3.0, 4 - 1e-6])
    assert_allclose(theory.fuss_catalan_density(x, 1), np.sqrt(4 / x - 1) / (2 * np.pi), rtol=1e-8)
    assert theory.fuss_catalan_density([-1.0, 0.0, 4.0, 5.0, math.inf], 1).tolist() == [0, math.inf, 0, 0, 0]


def test_density_of_two_matrices_is_penson_and_zyczkowskis():
    """Their closed form for depth 2, an independent formula."""
    x = np.array([1e-6, .01, 1.0, 5.0, 6.7])
    root = (27 + 3 * np.sqrt(81 - 12 * x)) ** (1 / 3)
    exact = (2 ** (1 / 3) * math.sqrt(3) / (12 * np.pi) * (2 ** (1 / 3) * root**2 - 6 * np.cbrt(x))
             / (x ** (2 / 3) * root))
    assert_allclose(theory.fuss_catalan_density(x, 2), exact, rtol=1e-9)


# --- moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation, live", [("linear", 1.0), ("relu", 0.5)])
@pytest.mark.parametrize("width, weight_var", [(1, 1.0), (2, 1.7), (16, 1.0), (300, 2.3)])
def test_second_moment_solves_its_recursion(activation, live, width, weight_var):
    """The closed form is the recursion of (a, r) layer by layer, to rounding."""
    k1, k2 = width * live, width * live * (width * live + 1 - live)
    a = r = 1.0
    for depth in range(1, 31):
        a, r = (weight_var**2 * ((k1 + k2) * a / width**2 + k1 * r / width),
                weight_var**2 * (k2 * r / width**2 + 2 * k1 * a / width**3))
        assert theory.second_moment(width, depth, activation, weight_var) == pytest.approx(a, rel=1e-12)
        mean, variance = theory.mean_squared(width, depth, activation, weight_var)
        assert mean == pytest.approx((weight_var * live) ** depth, rel=1e-12)
        assert variance + mean**2 == pytest.approx(r, rel=1e-12)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_wide_nets_reach_the_limit(activation):
    """Exact second moment - 1 -> the variance formula, the rest falling as 1/n; linear: the second Fuss-Catalan number.

    width x gap at n = 1e4 and 1e5 agree to 1 %: the gap is c/n + O(1/n^2).
    """
    depth = np.array([1, 5, 20])
    limit = 1 + theory.spectrum_variance(activation, depth)
    gap = [width * (theory.second_moment(width, depth, activation) - limit) for width in (1e4, 1e5)]
    assert_allclose(*gap, rtol=1e-2)
    assert_allclose(theory.second_moment(1e12, depth, activation), limit, rtol=1e-8)
    if activation == "linear":
        assert_allclose(limit, FC(2, depth), rtol=1e-14)


def test_variances_in_closed_form():
    """Linear L and 0, ReLU 2L and L; hard-tanh L(1/p - 1) orthogonal, L/p Gaussian; tanh -> 8 q^2 L as q -> 0."""
    depth, q = np.array([1, 7, 50]), np.array([.1, 1.0, 30.0])
    assert_allclose(theory.spectrum_variance("linear", depth), depth)
    assert_allclose(theory.spectrum_variance("linear", depth, "orthogonal"), 0 * depth)
    assert_allclose(theory.spectrum_variance("relu", depth), 2 * depth)
    assert_allclose(theory.spectrum_variance("relu", depth, "orthogonal"), depth)
    p = np.array([math.erf(1 / math.sqrt(2 * v)) for v in q])
    assert_allclose(theory.spectrum_variance("hard_tanh", depth, "orthogonal", q), depth * (1 / p - 1), atol=1e-15)
    assert_allclose(theory.spectrum_variance("hard_tanh", depth, "gaussian", q), depth / p)
    assert_allclose(theory.spectrum_variance("tanh", depth, "orthogonal", 0.0), 0 * depth, atol=1e-12)
    assert theory.spectrum_variance("tanh", 3, "orthogonal", 1e-5) == pytest.approx(3 * 8e-10, rel=1e-3)


@pytest.mark.parametrize("activation, slope", {
    "tanh": lambda h: 1 / math.cosh(h) ** 2, "erf": lambda h: 2 / math.sqrt(math.pi) * math.exp(-h * h),
    "sigmoid": lambda h: 1 / (2 + 2 * math.cosh(h)),
    "gelu": lambda h: math.erfc(-h / math.sqrt(2)) / 2 + h * math.exp(-h * h / 2) / math.sqrt(2 * math.pi),
}.items())
@pytest.mark.parametrize("q", [.01, 1.0, 400.0])
def test_slope_moments_against_adaptive_quadrature(activation, slope, q):
    """mu_2 / mu_1^2 - 1 by scipy's adaptive quadrature of the slope, to its 1e-9: rough and narrow Gaussians alike."""
    s = math.sqrt(q)
    mu = [integrate.quad(lambda h, k=k: slope(h) ** (2 * k) * math.exp(-h * h / (2 * q)) / (s * math.sqrt(2 * math.pi)),
                         -10 * s, 10 * s, points=[-5, -1, 0, 1, 5] if s > 1 else None, epsabs=1e-13, limit=300)[0]
          for k in (1, 2)]
    assert theory.spectrum_variance(activation, 1, "orthogonal", q) == pytest.approx(mu[1] / mu[0] ** 2 - 1, abs=1e-9)


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("activation, q", [("linear", None), ("relu", None), ("hard_tanh", .3), ("hard_tanh", 40.0)])
def test_edge_is_the_minimum_of_its_definition(activation, q, weights):
    """((1 + m)/m) / S(m) on a fine grid of ln m is nowhere smaller, and comes within 1e-6 of the closed form."""
    p = {"linear": 1.0, "relu": .5}.get(activation) or math.erf(1 / math.sqrt(2 * q))
    m = np.exp(np.linspace(-30, 30, 60001))
    for depth in (1, 2, 3, 40):
        log_inverse_s = np.log1p(m / p) - (0 if weights == "gaussian" else np.log1p(m))
        least = math.exp((np.log1p(1 / m) + depth * log_inverse_s).min())
        edge = theory.spectrum_edge(activation, depth, weights, q)
        assert edge <= least * (1 + 1e-12)
        assert edge == pytest.approx(least, rel=1e-6)


def test_edges_in_closed_form():
    """Linear Gaussian: Fuss and Catalan's; linear orthogonal: 1; ReLU orthogonal: L^L / (L - 1)^(L - 1), 2 at L = 1."""
    depth = np.array([1, 2, 9, 200])
    assert_allclose(theory.spectrum_edge("linear", depth), theory.fuss_catalan_edge(depth), rtol=1e-13)
    assert_allclose(theory.spectrum_edge("linear", depth, "orthogonal"), 1)
    exact = [2] + [float(n**n / (n - 1) ** (n - 1)) for n in (2, 9)] + [200 * (200 / 199) ** 199]
    assert_allclose(theory.spectrum_edge("relu", depth, "orthogonal"), exact, rtol=1e-12)


def test_edges_of_deep_nets():
    """e depth / p for Gaussian weights, e depth (1 - p) / p for orthogonal ones, to the order 1 / depth."""
    depth, q = 100_000, 0.5
    p = math.erf(1 / math.sqrt(2 * q))
    for activation, live in (("relu", 0.5), ("hard_tanh", p)):
        edges = [theory.spectrum_edge(activation, depth, weights, q) for weights in ("gaussian", "orthogonal")]
        assert edges == pytest.approx([math.e * depth / live, math.e * depth * (1 - live) / live], rel=1e-3)


# --- Lyapunov exponents ----------------------------------------------------------------------------------------------


def test_masked_exponents_are_those_of_the_live_rows():
    """k live rows of n: Newman's for width k at variance weight_var k / n, then -inf; k = n changes nothing."""
    masked = theory.lyapunov_exponents(12, 2.0, live=6)
    assert_allclose(masked[:6], theory.lyapunov_exponents(6, 2.0 * 6 / 12), rtol=1e-14)
    assert (masked[6:] == -math.inf).all()
    assert np.array_equal(theory.lyapunov_exponents(5, live=5), theory.lyapunov_exponents(5))
    assert theory.lyapunov_exponents(5, [1.0, 2.0]).shape == (2, 5)


def test_largest_masked_exponent_is_that_of_a_vectors_norm():
    """lambda_1 is half the mean of ln chi2_k + ln(weight_var / n)."""
    expected = (math.log(2 * 1.5 / 20) + digamma(7 / 2)) / 2
    assert theory.lyapunov_exponents(20, 1.5, live=7)[0] == pytest.approx(expected, rel=1e-14)


def test_variances_of_log_r_add_up_to_that_of_the_determinant():
    """sum_i psi'(i/2)/4 per layer; the first is a quarter of the variance of ln ||J u||^2; masks as above."""
    assert 20 * theory.lyapunov_variance(16).sum() == pytest.approx(theory.sum_log_singular_values(16, 20).variance)
    assert 4 * theory.lyapunov_variance(9)[0] == pytest.approx(theory.log_jacobian_norm(9, 1, "linear").variance)
    masked = theory.lyapunov_variance(9, live=4)
    assert_allclose(masked[:4], theory.lyapunov_variance(4))
    assert np.isnan(masked[4:]).all()


def test_variances_of_log_r_are_those_of_real_gaussian_matrices():
    """ln |R_ii| of 4,000 real matrices' QR: psi'((n - i + 1) / 2) / 4 within 4.5 standard errors, not the complex law.

    A sample variance of N values has the standard error sqrt((m_4 / v^2 - 1) / N) v, m_4 by polygamma.
    """
    n, count = 6, 4_000
    r = np.linalg.qr(np.random.default_rng(5).standard_normal((count, n, n)), mode="r")
    measured = np.log(np.abs(np.diagonal(r, axis1=1, axis2=2))).var(axis=0, ddof=1)
    law = theory.lyapunov_variance(n)
    kurtosis = polygamma(3, (n - np.arange(n)) / 2) / 16 / law**2  # excess
    assert (np.abs(measured / law - 1) < 4.5 * np.sqrt((kurtosis + 2) / count)).all()


# --- a I + g G -------------------------------------------------------------------------------------------------------


def test_without_carry_it_is_the_plain_layer():
    """a = 0: triangular law ln(g sqrt t), the edge of Fuss and Catalan, and Newman's largest exponent."""
    assert_allclose(theory.residual_lyapunov_exponents(T, 0.0, 1.3), np.log(1.3 * np.sqrt(T)), rtol=1e-13)
    depth = np.array([1, 4, 100])
    assert_allclose(theory.residual_edge(depth, 0.0, 0.7), theory.fuss_catalan_edge(depth), rtol=1e-10)
    for width in (1, 2, 50):
        assert theory.residual_largest_exponent(width, 0.0, 1.5) == pytest.approx(
            theory.lyapunov_exponents(width, 1.5**2)[0], abs=1e-13)


def test_without_gain_nothing_happens():
    """g = 0: every exponent ln a, the edge 1."""
    assert_allclose(theory.residual_lyapunov_exponents(T, 0.8, 0.0), math.log(.8), rtol=1e-14)
    assert theory.residual_edge(30, 0.8, 0.0) == pytest.approx(1, abs=1e-12)
    assert theory.residual_largest_exponent(10, 0.8, 0.0) == pytest.approx(math.log(.8), abs=1e-14)


@pytest.mark.parametrize("a, g, mean", [(.9, .4, math.log(.9)), (1.0, 1.0, 0.0),
                                        (.5, 1.0, (.25 - 1) / 2), (.3, 2.0, math.log(2) + (.0225 - 1) / 2)])
def test_residual_exponents_span_and_mean(a, g, mean):
    """From sqrt(max(0, a^2 - g^2)) to sqrt(a^2 + g^2); mean ln|det|: ln a, or the disc's ln g + ((a/g)^2 - 1)/2."""
    ends = np.exp(theory.residual_lyapunov_exponents([0.0, 1.0], a, g))
    assert_allclose(ends, np.sqrt([max(0.0, a * a - g * g), a * a + g * g]), rtol=1e-13)
    total, error = integrate.quad(lambda t: theory.residual_lyapunov_exponents(t, a, g), 0, 1, epsabs=1e-11, limit=200)
    assert total == pytest.approx(mean, abs=max(1e-8, error))


@pytest.mark.parametrize("a, g", [(.73, .27), (.95, .05), (.3, 1.2), (1.0, 1e-5)])
def test_residual_edge_is_the_minimum_of_its_definition(a, g):
    """((1 + m)/m) (y(1 + m) / (a^2 + g^2))^L on a fine grid of ln m."""
    m = np.exp(np.linspace(-14, 14, 80001))  # beyond, this plain form of y cancels
    y = (a * a + (1 + 2 * m) * g * g + np.sqrt((a * a + (1 + 2 * m) * g * g) ** 2 - 4 * (1 + m) * m * g**4)) / 2
    for depth in (1, 12, 300):
        least = math.exp((np.log1p(1 / m) + depth * np.log(y / (a * a + g * g))).min())
        assert theory.residual_edge(depth, a, g) == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("width, a, g", [(1, .9, .3), (2, .9, .3), (96, .953, .047), (128, .731, .269), (5, .2, 1.0)])
def test_largest_residual_exponent_is_a_mean_over_poisson(width, a, g):
    """Non-central chi-squared is chi-squared with n + 2 Poisson(a^2 n / (2 g^2)) degrees of freedom: psi averaged."""
    rate = a * a * width / (2 * g * g)
    k = np.arange(int(rate + 15 * math.sqrt(rate) + 60))
    log_weight = k * math.log(rate) - np.cumsum(np.log(np.maximum(k, 1)))
    weight = np.exp(log_weight - log_weight.max())
    mean = (weight @ digamma(width / 2 + k)) / weight.sum()
    expected = (math.log(2 * g * g / width) + mean) / 2
    assert theory.residual_largest_exponent(width, a, g) == pytest.approx(expected, abs=1e-12)


def test_largest_residual_exponent_of_wide_layers():
    """Width 10^6: a vector's squared norm grows by a^2 + g^2 a layer, and its logarithm by that but for O(1 / n)."""
    a, g = .9, .1
    assert theory.residual_largest_exponent(10**6, a, g) == pytest.approx(math.log(a * a + g * g) / 2, abs=1e-6)


# --- arrays, errors --------------------------------------------------------------------------------------------------


def test_arrays_broadcast():
    """Every entry is the scalar call's."""
    depth, carry = np.array([[2], [9]]), np.array([.5, .9, 1.0])
    assert theory.residual_edge(depth, carry, .3)[1, 2] == theory.residual_edge(9, 1.0, .3)
    assert theory.spectrum_variance("tanh", depth, "gaussian", carry)[1, 0] == pytest.approx(
        theory.spectrum_variance("tanh", 9, "gaussian", .5), rel=1e-15)
    assert theory.second_moment(np.array([8, 9, 10]), depth, "relu")[1, 1] == theory.second_moment(9, 9, "relu")
    assert theory.residual_largest_exponent(depth, carry, .3).shape == (2, 3)


ERRORS = {
    "width 0": (partial(theory.lyapunov_exponents, 0), "`width` must be an integer of at least 1, got"),
    "two widths": (partial(theory.lyapunov_exponents, [2, 3]), "`width` must be a single integer"),
    "variance": (partial(theory.lyapunov_exponents, 3, -1.0), "`weight_var` must be positive and"),
    "live": (partial(theory.lyapunov_exponents, 3, live=4), "`live` must be at most the width 3, got 4"),
    "depth 0": (partial(theory.fuss_catalan_moment, 2, 0), "`depth` must be an integer of at least"),
    "order": (partial(theory.fuss_catalan_moment, -1, 2), "`k` must be an integer of at least 0"),
    "half a layer": (partial(theory.fuss_catalan_edge, 1.5), "`depth` must be an integer of at least"),
    "nan": (partial(theory.fuss_catalan_density, math.nan, 2), "`x` must be a number, got nan"),
    "activation": (partial(theory.spectrum_variance, "swish", 2), "`activation` must be one of linear,"),
    "weights": (partial(theory.spectrum_variance, "relu", 2, "uniform"), "`weights` must be one of gau"),
    "no q": (partial(theory.spectrum_variance, "tanh", 2), "`q` must be the mean square of the preact"),
    "q": (partial(theory.spectrum_edge, "hard_tanh", 2, q=-1.0), "`q` must be non-negative and finite, got -1"),
    "edge of tanh": (partial(theory.spectrum_edge, "tanh", 2), "`activation` must be one of linear, relu, h"),
    "moment of tanh": (partial(theory.second_moment, 8, 2, "tanh"), "`activation` must be one of linear, r"),
    "quantile": (partial(theory.residual_squared_gain, 1.2, 1.0, 1.0), "`quantile` must be between"),
    "nothing": (partial(theory.residual_edge, 3, 0.0, 0.0), "`carry` and `gain` must not both be 0"),
    "carry": (partial(theory.residual_edge, 3, -1.0, 0.0), "`carry` must be non-negative and finite, got"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_nonsense_is_refused(case):
    """One line that names the call, the argument and the rule."""
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=rf"^{call.func.__name__}: {message}") as caught:
        call()
    assert "\n" not in str(caught.value)
