"""Mean field of plain nets: tabulated values, identities, high-precision references, and nets measured."""

import math

import mpmath
import numpy as np
import pytest
import torch

from flowstudy import theory
from flowstudy.measure import gradient_flow, jacobian_spectrum
from flowstudy.nets import PlainNet, initialize
from flowstudy.theory.mean_field import fixed_points
from flowstudy.theory.mean_field.activations import ACTIVATIONS, hard_tanh, rectifier
from flowstudy.theory.mean_field.edge_of_chaos import critical_point
from flowstudy.theory.mean_field.gaussian import gaussian_mean

SMOOTH = ("tanh", "erf", "gelu", "sigmoid")
CURVED = ("tanh", "hard_tanh", "erf", "gelu", "sigmoid")  # a line of critical points, not one


def given(value: float, digits: float) -> object:
    """Equal to a tabulated value to the digits given: half a unit of the last, and a rounding."""
    return pytest.approx(value, rel=0, abs=0.5001 * digits)


# --- tabulated -------------------------------------------------------------------------------------------------------

FIXED_POINTS = {  # activation, weight_var, bias_var: q, chi_1, c, xi_q, xi_c
    ("tanh", 1.0**2, .05): (.19359252, .75903165, 1, 1.747626, 3.626976),
    ("tanh", 1.2**2, .05): (.38574599, .92242250, 1, 1.718106, 12.383607),
    ("tanh", 1.32**2, .05): (.55871034, .99602072, 1, 1.532299, 250.801097),
    ("tanh", 1.35**2, .05): (.60814474, 1.01287432, .92338521, 1.484745, 81.856145),
    ("tanh", 1.5**2, .05): (.88942492, 1.09233793, .56722493, 1.272975, 15.1170865),
    ("tanh", 2.0**2, .05): (2.19549393, 1.34240241, .16506496, .873293, 6.980274),
    ("tanh", 3.0**2, .05): (None, None, None, None, 4.488752),
    ("tanh", 4.0**2, .05): (None, None, None, None, 3.681862),
    ("tanh", 1.0, .001): (None, None, 1, None, 22.886136),
    ("tanh", 1.2**2, .001): (None, None, .20431090, None, 54.827060),
    ("tanh", 2.0, 0.0): (.61796477, 1.10552882, 0, None, None),
    ("tanh", (5 / 3)**2, 0.0): (1.178480, 1.209831, 0, None, None),
    ("erf", 1.0, .05): (None, None, 1, None, 7.040729),
    ("erf", 1.21, .05): (None, None, 1, None, 18.779734),
    ("erf", 2.25, .05): (1.15726576, None, .33913539, None, 8.549691),
    ("erf", 1.0, 0.0): (None, 1.01690252, None, None, None),
    ("sigmoid", 1.0, 0.0): (None, .05572071, 1, None, None),
    ("sigmoid", 16.0, 0.0): (None, .39887901, 1, None, None),
    ("gelu", 2.0, 0.0): (0, .5, 1, None, None),
}


@pytest.mark.parametrize("point", FIXED_POINTS)
def test_fixed_points_equal_the_tabulated_ones(point):
    """q*, chi_1, c*, xi_q and xi_c to the digits given (eight after the point, six where seven digits are given)."""
    found = theory.mean_field(*point)
    for name, value in zip(("q", "chi_1", "c", "xi_q", "xi_c"), FIXED_POINTS[point], strict=True):
        digits = 1e-6 if name.startswith("xi") or point[1] == (5 / 3)**2 else 1e-8
        if value is not None:
            assert getattr(found, name) == given(value, digits), name
    assert found.phase == ("chaotic" if found.chi_1 > 1 else "ordered")


CRITICAL = {  # activation, bias_var: weight_var, q, xi_q
    ("tanh", .001): (1.18918959, .10729236, 5.516467), ("tanh", .01): (1.42420529, .27330091, 2.575156),
    ("tanh", .05): (1.76095464, .57004788, 1.521097), ("tanh", .1): (1.98607264, .80579918, 1.216213),
    ("tanh", .5): (2.84316746, 1.97103061, .733327), ("tanh", 0.0): (1, 0, math.inf),
    ("erf", .001): (.93258313, .10248071, None), ("erf", .01): (1.11428006, .25320966, None),
    ("erf", .05): (1.37583901, .51717684, None), ("erf", .1): (1.55211786, .72635923, None),
    ("erf", .5): (2.23365963, 1.77206093, None), ("erf", 0.0): (math.pi / 4, 0, math.inf),
}


@pytest.mark.parametrize("point", CRITICAL)
def test_critical_line_equals_the_tabulated_one(point):
    """Its weight variance; there the net is critical, at the tabulated q* and xi_q, and xi_c is infinite."""
    activation, bias_var = point
    weight_var, q, xi_q = CRITICAL[point]
    found = theory.critical_weight_var(activation, bias_var)
    assert found == given(weight_var, 1e-8)
    net = theory.mean_field(activation, found, bias_var)
    assert (net.phase, net.c, net.xi_c) == ("critical", 1.0, math.inf)
    assert net.q == given(q, 1e-8)
    assert xi_q is None or net.xi_q == given(xi_q, 1e-6)


def test_critical_tanh_point_to_fifteen_digits():
    assert theory.critical_weight_var("tanh", .05) == pytest.approx(1.76095463960674, rel=5e-15)
    assert critical_point("test", "tanh", .05).q == pytest.approx(.570047881640764, rel=5e-14)


@pytest.mark.parametrize(("q", "weight_var", "bias_var"), [
    (.1, 3.30019991, .00399566), (.5, 2.45550642, .03454270), (1.0, 2.19369990, .06719167),
    (2.0, 2.04285110, .11632199), (5.0, 1.96627484, .21444471), (20.0, 1.96018504, .47533677),
    (3.56155281, 1.983058257, .172922391)])
def test_critical_line_of_gelu(q, weight_var, bias_var):
    """The tabulated points, parametrised by q; the line is steep, so that bias_var's last digit moves weight_var's."""
    low, high = theory.critical_weight_var("gelu", bias_var * np.array([.999, 1.001]))
    slope = abs(high - low) / (.002 * bias_var)
    assert theory.critical_weight_var("gelu", bias_var) == pytest.approx(weight_var, abs=5e-9 * (1 + slope))
    gelu = ACTIVATIONS["gelu"]
    assert 1 / gelu.squared_slope(q) == pytest.approx(weight_var, abs=6e-9)
    assert q - gelu.mean_square(q) / gelu.squared_slope(q) == pytest.approx(bias_var, abs=6e-9)


def test_products_of_chi_from_any_start():
    """tanh at the critical point without biases: gradients vanish as a power, .706 / L."""
    product = theory.plain("tanh", depth=1000, weight_var=1.0)["mean_squared"].to_numpy()
    table = {1: (.464403, 6), 5: (.137524, 6), 10: (.0713697, 7), 50: (.0143348, 7), 100: (.00713425, 8),
             1000: (7.07482e-4, 9)}
    for depth, (value, digits) in table.items():
        assert product[depth - 1] == given(value, 10.0**-digits)


def test_relu_gradients_of_two_inputs_part_as_a_power():
    """c_0 = 0: the product of k0(c_l), tabulated; c_0 = .5, L = 50: .0028; tanh .673."""
    kept = theory.plain("relu", 40, 2.0, c0=0.0)["gradient_correlation"].to_numpy()
    for depth, value, digits in ((5, .104559, 1e-6), (10, .0336522, 1e-7), (20, .00823534, 1e-8),
                                 (40, .00160483, 1e-8)):
        assert kept[depth - 1] == given(value, digits)
    assert theory.plain("relu", 50, 2.0)["gradient_correlation"].iloc[-1] == given(.0028, 1e-4)
    assert theory.plain("tanh", 50, 1.0)["gradient_correlation"].iloc[-1] == given(.673, 1e-3)


@pytest.mark.slow
def test_rates_at_the_edge_of_chaos():
    """Tabulated coefficients; and 1 - c_l times l^power goes to them along the map itself, by the next order's log."""
    assert theory.edge_of_chaos("tanh", .05) == (given(6.171126, 1e-6), 1)
    assert theory.edge_of_chaos("erf", .05) == (given(5.736505, 1e-6), 1)
    assert theory.edge_of_chaos("relu") == (given(44.4132, 1e-4), 2)
    assert theory.edge_of_chaos("tanh", 0.0).coefficient == math.inf == theory.edge_of_chaos("linear").coefficient
    for activation, bias_var, depth in (("tanh", .05, 3000), ("relu", 0, 10000), ("leaky_relu", 0, 10000),
                                        ("hard_tanh", .05, 10000), ("erf", .3, 3000)):
        weight_var = theory.critical_weight_var(activation, bias_var)
        phi, q = ACTIVATIONS[activation], np.nan_to_num(critical_point("test", activation, bias_var).q, nan=1.0)
        pairs, square, c = phi.pairs(np.asarray(q)), phi.mean_square(q), np.asarray(.5)
        for _ in range(depth):
            c = (weight_var * pairs.covariance(c) + bias_var) / (weight_var * square + bias_var)
        law = theory.edge_of_chaos(activation, bias_var)
        assert (1 - c) * depth**law.power == pytest.approx(law.coefficient, rel=20 * math.log(depth) / depth)


@pytest.mark.parametrize(("net", "depth", "value"), [
    ("plain", 4, .0625), ("residual", 8, .1001129), ("highway", 16, .60171), ("highway", 10**6, .6065307)])
def test_independent_masks(net, depth, value):
    assert theory.shattered_correlation(net, depth) == pytest.approx(value, rel=1e-5)


def test_true_masks_make_a_power_of_depth_only_in_the_limit():
    """The local exponent of the gradient correlation at 45 degrees of plain ReLU nets: -0.9, -1.7, -2.2, then -2.8."""
    correlation = theory.plain("relu", 400, 2.0, c0=math.cos(math.pi / 4))["gradient_correlation"].to_numpy()
    for (start, end), exponent in {(2, 10): -0.9, (10, 24): -1.7, (24, 50): -2.2, (200, 400): -2.8}.items():
        fall = math.log(correlation[end - 1] / correlation[start - 1])
        assert fall / math.log(end / start) == pytest.approx(exponent, abs=0.05)


def test_the_gradients_depth_scale_is_the_correlations_in_the_ordered_phase_alone():
    """Tanh, bias variance 0.05: one number at weight variance 1.44; 3.40 against 6.98 at 4."""
    ordered, chaotic = (theory.mean_field("tanh", weight_var, 0.05) for weight_var in (1.44, 4.0))
    assert -1 / math.log(ordered.chi_1) == pytest.approx(ordered.xi_c, rel=1e-9)
    assert (1 / math.log(chaotic.chi_1), chaotic.xi_c) == pytest.approx((3.40, 6.98), abs=0.005)


# --- identities ------------------------------------------------------------------------------------------------------

POINTS = [(activation, weight_var, bias_var) for activation, weight_vars in {
    "linear": (.3, .9), "relu": (.5, 1.9), "leaky_relu": (.5, 1.9), "tanh": (.7, 1.5, 6.0), "hard_tanh": (.7, 1.5, 6.0),
    "erf": (.5, 1.5, 6.0), "gelu": (.5, 1.9), "sigmoid": (1.0, 30.0, 200.0)}.items()
    for weight_var in weight_vars for bias_var in (.02, .3)]


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_maps_stay_at_the_fixed_points(point):
    """q* and c* are fixed points of the maps, c = 1 too; |dq'/dq| < 1 there is exp(-1 / xi_q), by finite difference."""
    net = theory.mean_field(*point)
    activation, weight_var, bias_var = point
    assert theory.length_map(activation, net.q, weight_var, bias_var) == pytest.approx(net.q, rel=1e-12)
    for c in (net.c, 1.0):
        assert theory.correlation_map(activation, c, weight_var, bias_var) == pytest.approx(c, abs=1e-12)
    step = 1e-5 * net.q
    low, high = (theory.length_map(activation, net.q + d, weight_var, bias_var) for d in (-step, step))
    assert (high - low) / (2 * step) == pytest.approx(math.exp(-1 / net.xi_q), rel=1e-8)


@pytest.mark.parametrize("activation", ["tanh", "erf", "hard_tanh"])
@pytest.mark.parametrize("weight_var", [1.5, 2.0, 6.0, 25.0])
def test_odd_activations_without_biases_uncorrelate_inputs_exactly(activation, weight_var):
    """phi(-x) = -phi(x): uncorrelated inputs stay so, whatever the rounding of the maps."""
    assert theory.mean_field(activation, weight_var, 0.0).c == 0.0


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_slopes_of_the_correlation_map(point):
    """dc'/dc at c = 1 is chi_1, and exp(-1 / xi_c) at c*; by differences, of width h^(1/2) at kinks' square roots."""
    net = theory.mean_field(*point)
    kinked = ACTIVATIONS[point[0]].curvature is None and point[0] != "linear"
    step = 1e-5
    at_one = (1 - theory.correlation_map(point[0], 1 - step, *point[1:])) / step
    assert at_one == pytest.approx(net.chi_1, rel=2 * step**.5 if kinked else 20 * step * max(1, net.q))
    if net.phase == "chaotic":
        low, high = (theory.correlation_map(point[0], net.c + d, *point[1:]) for d in (-step, step))
        assert (high - low) / (2 * step) == pytest.approx(math.exp(-1 / net.xi_c), rel=1e-6)
        assert net.c < 1


@pytest.mark.parametrize("activation", CURVED)
def test_chi_1_is_1_on_the_critical_line(activation):
    """At the line's own q, for nine bias variances; on either side lie the two phases (where q* attracts)."""
    bias_var = np.linspace(.2, 3, 9)
    weight_var = theory.critical_weight_var(activation, bias_var)
    on = theory.mean_field(activation, weight_var, bias_var)
    assert on.chi_1 == pytest.approx(np.ones(9), abs=1e-12)
    assert (on.phase == "critical").all() and np.isinf(on.xi_c).all() and np.isfinite(on.xi_q).all()
    assert (theory.mean_field(activation, .99 * weight_var, bias_var).phase == "ordered").all()
    if activation != "gelu":  # beyond its line lies no phase: gelu's length map is unbounded
        assert (theory.mean_field(activation, 1.01 * weight_var, bias_var).phase == "chaotic").all()


def test_a_plain_net_arrives_where_mean_field_says():
    """200 layers of tanh: length, chi and cosine of preactivations at q*, chi_1, c*."""
    net, last = theory.mean_field("tanh", 4.0, .05), theory.plain("tanh", 200, 4.0, .05, q0=3.0, c0=-.2).iloc[-1]
    assert (last["length"], last["chi"]) == pytest.approx((net.q, net.chi_1), rel=1e-12)
    assert (4 * last["q"] * last["c"] + .05) / last["length"] == pytest.approx(net.c, rel=1e-10)


def test_where_nothing_is_left_or_everything_stays():
    """Without biases below the critical point q* = 0; relu at 2 keeps every length, q is nan; scales there are inf."""
    for activation, weight_var in (("tanh", .5), ("relu", 1.0), ("linear", .5), ("gelu", 1.0)):
        net = theory.mean_field(activation, weight_var)
        assert (net.q, net.c, net.phase) == (0.0, 1.0, "ordered")
    for activation, weight_var in (("relu", 2.0), ("linear", 1.0)):
        net = theory.mean_field(activation, weight_var)
        assert math.isnan(net.q)
        assert (net.chi_1, net.phase, net.xi_q, net.xi_c, net.xi_gradient) == (1, "critical", *[math.inf] * 3)
    assert theory.mean_field("tanh", 0.0, .1).xi_c == 0.0
    assert theory.correlation_map("relu", 0.0, 2.0) == pytest.approx(1 / math.pi, rel=1e-14)
    assert theory.correlation_map("tanh", .3, .5) == pytest.approx(.3, rel=1e-12)


@pytest.mark.parametrize("weight_var, phase", [(0.5, "ordered"), (4.0, "chaotic")])
def test_gradients_change_by_e_over_their_depth_scale_in_either_phase(weight_var, phase):
    """E||gradient||^2 is multiplied by chi_1 a layer: by e^-1 or e over xi_gradient layers."""
    net = theory.mean_field("tanh", weight_var, 0.05)
    assert net.phase == phase
    assert net.chi_1 ** net.xi_gradient == pytest.approx(math.exp(-1 if phase == "ordered" else 1), rel=1e-12)
    many = theory.mean_field("tanh", np.array([weight_var, 1.0]), 0.05)
    assert many.xi_gradient[0] == pytest.approx(net.xi_gradient, rel=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_arrays_are_the_scalars(activation):
    """Broadcast over both variances, each point equal to its scalar call."""
    weight_var, bias_var = np.array([[.3], [.95]]), np.array([.01, .2, 1.0])
    net = theory.mean_field(activation, weight_var, bias_var)
    for i, j in np.ndindex(2, 3):
        one = theory.mean_field(activation, float(weight_var[i, 0]), float(bias_var[j]))
        for name in ("q", "c", "chi_1", "xi_q", "xi_c"):
            assert getattr(net, name)[i, j] == pytest.approx(getattr(one, name), rel=1e-11), name
        assert net.phase[i, j] == one.phase
    assert isinstance(one.q, float) and isinstance(one.phase, str)


# --- high precision --------------------------------------------------------------------------------------------------

PRECISE = {"tanh": (mpmath.tanh, lambda h: mpmath.sech(h)**2, []), "erf": (mpmath.erf, None, []),
           "gelu": (lambda h: h * mpmath.ncdf(h), None, []), "hard_tanh": (lambda h: max(-1, min(1, h)), None, [-1, 1]),
           "leaky_relu": (lambda h: max(h, h / 100), None, [0]),
           "sigmoid": (lambda h: 1 / (1 + mpmath.exp(-h)), None, [])}


OWN = {  # with options of their own
    "leaky 0.5": rectifier(.5), "leaky -0.3": rectifier(-.3), "clip -0.3 2": hard_tanh(-.3, 2.0),
    "relu6": hard_tanh(0.0, 6.0), "clip -2 0": hard_tanh(-2.0, 0.0), "clip -3 3": hard_tanh(-3.0, 3.0)}


def precise_mean(function, q: float, breaks: list[float]) -> float:
    std = mpmath.sqrt(q)
    ends = sorted([-14 * std, *(k * std for k in (-6, -2, 2, 6)), 14 * std, *breaks, 0])
    return float(mpmath.quad(lambda h: function(h) * mpmath.npdf(h, 0, std), ends))


@pytest.mark.parametrize("activation", PRECISE)
@pytest.mark.parametrize("q", [.04, 1.7, 40.0])
def test_means_against_mpmath(activation, q):
    """V and E phi'^2 by adaptive quadrature in 25 digits; at q = 40 tanh is nearly a step."""
    value, slope, breaks = PRECISE[activation]
    phi = ACTIVATIONS[activation]
    with mpmath.workdps(25):
        assert phi.mean_square(np.float64(q)) == pytest.approx(
            precise_mean(lambda h: value(h)**2, q, breaks), rel=1e-12)
        if slope:
            assert phi.squared_slope(np.float64(q)) == pytest.approx(
                precise_mean(lambda h: slope(h)**2, q, breaks), rel=1e-12)


@pytest.mark.parametrize("activation", [*SMOOTH, "linear"])
@pytest.mark.parametrize("c", [-.7, 0.0, .4, .97])
def test_pair_means_against_a_plain_double_sum(activation, c):
    """E phi(u) phi(v) and E phi'(u) phi'(v) by the two-dimensional trapezoidal rule, exact for smooth functions."""
    phi, q = ACTIVATIONS[activation], np.asarray(2.3)
    z = np.linspace(-9.5, 9.5, 800)
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    u, v = np.sqrt(q) * z[:, None], np.sqrt(q) * (c * z[:, None] + np.sqrt(1 - c**2) * z)
    pairs = phi.pairs(q)
    for function, mean in ((phi.value, pairs.covariance), (phi.slope, pairs.slope_covariance)):
        assert mean(np.asarray(c)) == pytest.approx(weight @ (function(u) * function(v)) @ weight, abs=1e-13)


@pytest.mark.parametrize("activation", OWN)
@pytest.mark.parametrize("q", [.04, 1.7, 40.0])
def test_means_with_options_against_mpmath(activation, q):
    """V and E phi'^2 piece by piece between the kinks, in 25 digits; and V's slope in q, by central differences."""
    phi, step = OWN[activation], 1e-6 * q
    kinks = [float(k) for k in phi.kink_places]
    with mpmath.workdps(25):
        for function, mean in ((phi.value, phi.mean_square), (phi.slope, phi.squared_slope)):
            square = precise_mean(lambda h, of=function: mpmath.mpf(float(of(np.float64(h))))**2, q, kinks)
            assert mean(np.float64(q)) == pytest.approx(square, rel=1e-9)
    difference = (phi.mean_square(np.float64(q + step)) - phi.mean_square(np.float64(q - step))) / (2 * step)
    assert phi.mean_square_slope(np.float64(q)) == pytest.approx(difference, abs=1e-8)


def test_ranges_scale_and_reflect():
    """clip to [-3, 3] is 3 clip(h / 3) to [-1, 1]; clip to [-2, 0] of h is minus clip to [0, 2] of -h."""
    c = np.linspace(-1, 1, 11)
    for q in (.3, 20.0):
        wide, unit = hard_tanh(-3.0, 3.0).pairs(q), ACTIVATIONS["hard_tanh"].pairs(q / 9)
        assert wide.covariance(c) == pytest.approx(9 * unit.covariance(c), abs=1e-13)
        assert wide.slope_covariance(c) == pytest.approx(unit.slope_covariance(c), abs=1e-14)
        below, above = hard_tanh(-2.0, 0.0).pairs(q), hard_tanh(0.0, 2.0).pairs(q)
        assert below.covariance(c) == pytest.approx(above.covariance(c), abs=1e-14)
    assert theory.critical_weight_var(hard_tanh(-3.0, 3.0), .9) == pytest.approx(
        theory.critical_weight_var("hard_tanh", .1), rel=1e-12)


@pytest.mark.parametrize("a", [0.0, .4, 3.0])
@pytest.mark.parametrize("activation", [name for name in OWN if name.startswith(("clip", "relu6"))])
def test_opposite_inputs(activation, a):
    """At c = -1 the second input is minus the first: E phi(h) phi(-h), by quadrature between all kinks."""
    phi, q = OWN[activation], np.float64(.5 + a)
    kinks = sorted({*phi.kink_places, *(-k for k in phi.kink_places)})
    for function, mean in ((phi.value, phi.pairs(q).covariance), (phi.slope, phi.pairs(q).slope_covariance)):
        expected = gaussian_mean(lambda h, function=function: function(h) * function(-h), q, kinks)
        assert mean(np.asarray(-1.0)) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "hard_tanh", *OWN])
@pytest.mark.parametrize("q", [.2, 3.0])
def test_pair_means_with_kinks_obey_price(activation, q):
    """Covariance: the mean square at c = 1, E phi squared at c = 0, and slope q E phi' phi' between (Price 1958)."""
    phi, q = (ACTIVATIONS | OWN)[activation], np.asarray(q)
    pairs = phi.pairs(q)
    assert pairs.covariance(np.asarray(1.0)) == pytest.approx(phi.mean_square(q), rel=1e-13)
    assert pairs.slope_covariance(np.asarray(1.0)) == pytest.approx(phi.squared_slope(q), rel=1e-13)
    assert pairs.covariance(np.asarray(0.0)) == pytest.approx(phi.mean(phi.value, q)**2, abs=1e-14)
    c, step = np.linspace(-.95, .95, 9), 1e-5
    slope = (pairs.covariance(c + step) - pairs.covariance(c - step)) / (2 * step)
    assert slope == pytest.approx(q * pairs.slope_covariance(c), abs=1e-8)


# --- phase diagram, errors -------------------------------------------------------------------------------------------


def test_a_phase_diagram_is_parted_by_the_critical_line():
    """50 x 50 points of tanh: ordered to the left of the line, chaotic to the right of it, a finite q* everywhere."""
    weight_var, bias_var = np.linspace(.1, 3, 50)[:, None]**2, np.linspace(0, .5, 50)
    net = theory.mean_field("tanh", weight_var, bias_var)
    beyond = weight_var > theory.critical_weight_var("tanh", bias_var)
    assert np.array_equal(net.phase, np.where(beyond, "chaotic", "ordered")) and np.isfinite(net.q).all()


@pytest.mark.parametrize("activation, most", [("tanh", 4.0), ("gelu", 1.9)])
def test_points_that_are_taken_in_parts_are_the_points(activation, most, monkeypatch):
    """Seven points, three at a time; of tanh four are chaotic, on which a loop of its own goes."""
    weight_var = np.linspace(.3, most, 7)
    whole = theory.mean_field(activation, weight_var, .1)
    monkeypatch.setattr(fixed_points, "CHUNK", 3)
    parts = theory.mean_field(activation, weight_var, .1)
    for name in ("q", "c", "chi_1", "xi_c"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-11)
    assert (whole.phase == "chaotic").sum() == (4 if activation == "tanh" else 0)


@pytest.mark.parametrize("low, high", [(0.0, 0.0), (1.0, 2.0), (-2.0, -1.0), (2.0, -2.0), (-math.inf, 1.0),
                                       (-1.0, math.inf), (math.nan, 1.0)])
def test_a_range_without_zero_or_without_width_is_refused(low, high):
    with pytest.raises(ValueError, match=r"^hard_tanh: `low` and `high` must be finite numbers around 0"):
        hard_tanh(low, high)


ERRORS = {
    "misspelt": (lambda: theory.mean_field("tanhh", 1.0), r"mean_field: `activation` .* Did you mean 'tanh'\?"),
    "negative weights": (lambda: theory.mean_field("tanh", -1.0), r"mean_field: `weight_var` must be non-negative"),
    "negative biases": (lambda: theory.mean_field("tanh", 1.0, [-.1]), r"mean_field: `bias_var` must be non-negative"),
    "nan": (lambda: theory.length_map("tanh", math.nan, 1.0), r"length_map: `q` must be non-negative and finite"),
    "relu grows": (lambda: theory.mean_field("relu", 2.1, .1), r"mean_field: `weight_var` .* grows without bound\. L"),
    "relu at 2": (lambda: theory.mean_field("relu", [1.0, 2.0], .1), r"mean_field: .*got 2 with .* \(1 of 2 points\)"),
    "gelu grows": (lambda: theory.mean_field("gelu", 4.0), r"mean_field: `weight_var` must leave the length map"),
    "linear": (lambda: theory.mean_field("linear", 1.5), r"mean_field: `weight_var` must leave the length map"),
    "beyond 1": (lambda: theory.correlation_map("tanh", 1.1, 1.0), r"correlation_map: `c` must be between -1 and 1"),
    "relu biases": (lambda: theory.critical_weight_var("relu", .1), r"critical_weight_var: `bias_var` must be 0 for"),
    "depth 0": (lambda: theory.plain("tanh", 0, 1.0), r"plain: `depth` must be an integer of at least 1, got 0"),
    "two nets": (lambda: theory.plain("tanh", 3, [1.0, 2.0]), r"plain: `weight_var` must be one number, got \[1\.0"),
    "net": (lambda: theory.shattered_correlation("conv", 3), r"shattered_correlation: `net` must be one of plain"),
    "branch": (lambda: theory.shattered_correlation("plain", 3, .1), r"shattered_correlation: `branch_var` must be"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_errors_say_what_is_wrong(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)


# --- measured --------------------------------------------------------------------------------------------------------

DEPTH, NETS = 8, 16
INITS = [("tanh", 2.25, .05), ("relu", 2.0, 0.0), ("linear", 1.0, 0.0), ("gelu", 1.9, .1), ("hard_tanh", 1.5, .05),
         ("sigmoid", 16.0, .5)]


def two_inputs(width: int, c: float, seed: int) -> torch.Tensor:
    """Two inputs of mean 0 and mean square 1 whose cosine is exactly c."""
    noise = np.random.default_rng(seed).standard_normal((width, 3))
    basis = np.linalg.qr(np.column_stack([np.ones(width), noise]))[0][:, 1:].T * width**.5
    return torch.from_numpy(c**.5 * basis[:1] + (1 - c)**.5 * basis[1:])


def z_score(sample: np.ndarray, predicted: float, allowance: float) -> float:
    """Deviation of the mean over nets from the prediction, less the O(1/n) allowance, in standard errors."""
    error = sample.std(ddof=1) / len(sample)**.5
    return max(abs(sample.mean() - predicted) - allowance * abs(predicted), 0.0) / error


@pytest.mark.parametrize("width", [200, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("init", INITS, ids=str)
def test_measured_nets_agree(init, width):
    """8 layers, 16 nets: q, c and the gain of the error signal back to layer 1, |z| < 4.5.

    Allowed besides the standard error over nets: a relative depth / width, the order of finite width.
    """
    activation, weight_var, bias_var = init
    predicted = theory.plain(activation, DEPTH, weight_var, bias_var, c0=.5)
    rows = []
    for seed in range(NETS):
        net = initialize(PlainNet(width, width, DEPTH, 10, activation).double(), "lecun_normal", seed=seed,
                         gain=weight_var**.5)
        biases = np.random.default_rng(seed).standard_normal((DEPTH, width)) * bias_var**.5
        for layer, bias in zip(net.hidden_layers, biases, strict=True):
            layer.affine.bias.data = torch.from_numpy(bias)
        frame = gradient_flow(net, two_inputs(width, .5, seed)).frame
        error = frame["log10_error_signal_norm"]
        rows.append((frame["activation_mean_square"].iloc[-1], frame["activation_correlation"].iloc[-1],
                     10**(2 * (error.iloc[0] - error.iloc[-1]))))
    q, c, gain = np.array(rows).T
    last, first = predicted.iloc[-1], predicted.iloc[0]
    allowance = DEPTH / width
    assert z_score(q, last["q"], allowance) < 4.5
    assert z_score(c, last["c"], allowance) < 4.5
    assert z_score(gain, last["mean_squared"] / first["mean_squared"], allowance) < 4.5


@pytest.mark.parametrize("init", [("tanh", 2.25), ("relu", 2.0), ("gelu", 1.9)], ids=str)
def test_measured_jacobians_agree(init):
    """Mean squared singular value of 4 layers of width 160, one input, 32 nets: the product of chi, as above."""
    activation, weight_var = init
    width, depth = 160, 4
    predicted = theory.plain(activation, depth, weight_var)["mean_squared"].iloc[-1]
    measured = []
    for seed in range(32):
        net = initialize(PlainNet(width, width, depth, 10, activation).double(), "lecun_normal", seed=seed,
                         gain=weight_var**.5)
        x = two_inputs(width, .5, seed)[:1]
        measured.append(jacobian_spectrum(net, x, part=(0, depth), method="dense").mean_squared.item())
    assert z_score(np.array(measured), predicted, depth / width) < 4.5


@pytest.mark.parametrize("walk", [
    lambda depth: theory.plain("tanh", depth, 1.0), lambda depth: theory.residual_net("tanh", depth, 1.0),
    lambda depth: theory.highway("tanh", depth, -1.0, 1.0), lambda depth: theory.mean_mode("highway", "relu", depth)])
@pytest.mark.parametrize("depth", [10**7 + 1, 10**9, 1e18])
def test_depths_that_nobody_waits_for_are_refused(walk, depth):
    """Layer by layer 10^9 of them take hours."""
    with pytest.raises(ValueError, match=r"^\w+: `depth` must be at most 10,000,000"):
        walk(depth)
