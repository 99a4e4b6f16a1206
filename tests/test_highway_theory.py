"""Mean field of highway nets: tabulated values, identities, the limits at both ends, and nets measured."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from torch import Tensor, nn

from flowstudy import theory
from flowstudy.measure import gradient_flow, jacobian_spectrum
from flowstudy.nets import HighwayBlock, initialize

TANH, RELU = ("tanh", 1.0), ("relu", 2.0)
COLUMNS = ["layer", "q", "m", "c", "chi", "mean_squared", "P", "gradient_correlation"]


def given(text: str) -> object:
    """Equal to a tabulated value to the digits given: half a unit of the last, and a rounding."""
    mantissa, _, exponent = text.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return pytest.approx(float(text), rel=0, abs=.5001 * 10.0**(int(exponent or 0) - decimals))


# --- tabulated -------------------------------------------------------------------------------------------------------

FIRST_CHI = {0: ".492140 .676431 .784945", -1: ".626442 .715046 .801571", -2: ".772050 .804103 .844835",
             -3: ".883533 .892214 .897846", -5: ".979195 .979509 .972685"}


@pytest.mark.parametrize("gate_bias", FIRST_CHI)
def test_first_chi(gate_bias):
    """Layer 1 at q = 1: tanh with Glorot weights, ReLU with He weights, the same with He weights for the gate too."""
    inits = (("tanh", 1.0, 1.0), ("relu", 2.0, 1.0), ("relu", 2.0, 2.0))
    for (activation, weight_var, gate_var), chi in zip(inits, FIRST_CHI[gate_bias].split(), strict=True):
        assert theory.highway(activation, 1, gate_bias, weight_var, gate_var)["chi"][0] == given(chi)


AT_DEPTH = {  # (activation, gate bias): q, mean_squared, P - 1, c, gradient_correlation at 10; at 50; three at 100
    (*TANH, 0): ("5.705e-4 8.269e-4 7.491 .4112 .6661", "5.184e-16 7.517e-16 37.49 .4111 .6659",
                 "4.6e-31 6.7e-31 74.99"),
    (*TANH, -1): (".005455 .007061 2.690 .4384 .7580", "1.140e-11 1.478e-11 11.66 .4380 .7565",
                  "1.6e-22 2.1e-22 22.87"),
    (*TANH, -2): (".07309 .08339 .7893 .4695 .8696", "5.714e-6 6.583e-6 2.248 .4671 .8605", "4.35e-11 5.01e-11 4.031"),
    (*TANH, -3): (".3045 .3203 .2403 .4888 .9478", ".006078 .006501 .5062 .4849 .9315", "5.32e-5 5.70e-5 .7544"),
    (*TANH, -5): (".8139 .8165 .01348 .4994 .9966", ".4008 .4041 .03909 .4983 .9910", ".1861 .1881 .05211"),
    (*RELU, 0): (".02746 .002449 10.82 .9804 .2541", "7.562e-8 2.315e-15 50.86 1.0000 .2114", "8.4e-15 2.1e-30 100.9"),
    (*RELU, -1): (".04961 .01096 3.716 .9248 .5197", "9.291e-6 2.369e-11 13.36 1.0000 .4632", "2.1e-10 3.4e-22 25.28"),
    (*RELU, -2): (".1394 .09451 1.110 .7062 .7793", ".00176 7.322e-6 2.712 .9983 .7156", "1.1e-5 5.6e-11 4.513"),
    (*RELU, -3): (".3495 .3327 .3307 .5460 .9204", ".0322 .006448 .6683 .9072 .8783", ".003781 5.54e-5 .9305"),
    (*RELU, -5): (".8176 .8185 .0183 .5009 .9950", ".4280 .4047 .05221 .5307 .9869", ".2296 .1861 .06949"),
}
QUANTITIES = ("q", "mean_squared", "P", "c", "gradient_correlation")


@pytest.mark.parametrize("init", AT_DEPTH, ids=str)
def test_quantities_at_depths_10_50_100(init):
    """Every entry of the table, to the digits given, from one run to depth 100."""
    activation, weight_var, gate_bias = init
    frame = theory.highway(activation, depth=100, gate_bias=gate_bias, weight_var=weight_var)
    assert list(frame.columns) == COLUMNS and frame["layer"].tolist() == list(range(1, 101))
    for depth, values in zip((10, 50, 100), AT_DEPTH[init], strict=True):
        row = frame.iloc[depth - 1]
        for name, value in zip(QUANTITIES, values.split(), strict=False):
            assert row[name] - (name == "P") == given(value), (depth, name)


HE_GATES = {0: (".005105 11.51 .9722 .1813", "5.1e-15 51.6"), -1: (".01721 4.921 .9140 .3712", "3.87e-11 14.71"),
            -2: (".1058 1.965 .7103 .6114", "7.94e-6 3.754"), -3: (".3198 .7852 .5489 .8009", ".005542 1.273"),
            -5: (".7690 .08635 .4992 .9722", ".3318 .1876")}


@pytest.mark.parametrize("gate_bias", HE_GATES)
def test_the_authors_own_setting(gate_bias):
    """ReLU, He weights for H and T, as in the paper's own code: at depths 10 and 50."""
    frame = theory.highway("relu", 50, gate_bias, 2.0, gate_weight_var=2.0)
    for depth, values in zip((10, 50), HE_GATES[gate_bias], strict=True):
        row = frame.iloc[depth - 1]
        for name, value in zip(QUANTITIES[1:], values.split(), strict=False):
            assert row[name] - (name == "P") == given(value), (depth, name)


LIMITS = {  # gate bias: s, chi, xi_gradient, kappa of tanh, rho, q'/q, xi_q, xi_c of relu
    0: ".500000 .500000 1.443 .750000 .801242 .726026 3.123 2.681",
    -1: ".268941 .606776 2.002 .224197 .905262 .807611 4.680 3.497",
    -2: ".119203 .790013 4.243 .035649 .961454 .903919 9.899 7.424",
    -3: ".047426 .909647 10.560 .004939 .985282 .959873 24.417 18.607",
    -5: ".006693 .986704 74.709 .000091 .997971 .994190 171.622 132.301",
}


@pytest.mark.parametrize("gate_bias", LIMITS)
def test_limits_of_deep_nets(gate_bias):
    """Every entry of the table of asymptotics."""
    tanh, relu = theory.highway_limit("tanh", gate_bias, 1.0), theory.highway_limit("relu", gate_bias, 2.0)
    found = (tanh.gate, tanh.chi, tanh.xi_gradient, tanh.variance_growth, relu.mean_ratio, relu.length_ratio, relu.xi_q,
             relu.xi_c)
    for value, text in zip(found, LIMITS[gate_bias].split(), strict=True):
        assert value == given(text)
    assert tanh.xi_c == math.inf and relu.chi == pytest.approx(tanh.chi, rel=1e-14)


@pytest.mark.parametrize(("gate_bias", "value"), [(-1, "-.40686"), (0, "-.75459"), (-3, "-.07503")])
def test_log_volume(gate_bias, value):
    assert theory.highway_log_volume("tanh", gate_bias, 1.0) == given(value)


def test_gate_bias_rule():
    """-2.9, -4.6, -5.3 for 10, 50, 100 layers; at the late layers' rate these lose about a factor e."""
    assert theory.suggest_gate_bias([10, 50, 100]).round(1).tolist() == [-2.9, -4.6, -5.3]
    assert theory.suggest_gate_bias(1) == 0.0
    for depth in (50, 1000):
        limit = theory.highway_limit("tanh", theory.suggest_gate_bias(depth), 1.0)
        assert depth / limit.xi_gradient == pytest.approx(1.0, abs=1 / depth)


def kept(depth: int, gate_bias: float, activation: str) -> float:
    """Of E||gradient||^2 by the recursion; ReLU with He's weights, tanh with Glorot's."""
    variance = {"tanh": 1.0, "relu": 2.0}[activation]
    return theory.highway(activation, depth, gate_bias, variance, variance)["mean_squared"].iloc[-1]


def test_the_rate_and_the_whole_net_are_two_questions():
    """At the late layers' rule a whole net keeps less than 1 / e; at the whole net's bias it keeps 1 / e exactly."""
    for activation, shares in {"tanh": (".304", ".277", ".273"), "relu": (".306", ".223", ".210")}.items():
        for depth, share in zip((10, 50, 100), shares, strict=True):
            assert kept(depth, theory.suggest_gate_bias(depth), activation) == given(share)
    whole = theory.suggest_gate_bias([10, 50, 100], keeps="whole net")
    assert whole.tolist() == pytest.approx([-3.16, -4.89, -5.59], abs=0.005)
    for depth, bias in zip((10, 50, 100), whole, strict=True):
        assert kept(depth, bias, "tanh") == pytest.approx(math.exp(-1), rel=1e-5)
    relu = theory.suggest_gate_bias(20, "whole net", activation="relu", weight_var=2.0, gate_weight_var=2.0)
    assert kept(20, relu, "relu") == pytest.approx(math.exp(-1), rel=1e-5)
    assert theory.suggest_gate_bias(1, "whole net") == 0.0 and kept(1, 0.0, "tanh") > math.exp(-1)


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "sigmoid", "hard_tanh"])
def test_closed_gates_are_the_identity(activation):
    """b_T -> -inf: signal, cosine and gradients unchanged, an isometry."""
    frame = theory.highway(activation, 7, -math.inf, 2.0, q0=1.7, m0=.4, c0=.3)
    expected = [1.7, .4, .3, 1.0, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(frame[COLUMNS[1:]], [expected] * 7, rtol=1e-13)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "sigmoid", "hard_tanh", "erf", "leaky_relu"])
def test_open_gates_are_the_plain_net(activation):
    """b_T -> +inf: q, c, chi, their product and the gradient correlation of `plain`."""
    init = {"weight_var": 1.8, "q0": .7, "c0": -.2, "bias_var": .1}
    names = ["q", "c", "chi", "mean_squared", "gradient_correlation"]
    found = theory.highway(activation, 9, math.inf, **init)[names]
    np.testing.assert_allclose(found, theory.plain(activation, 9, **init)[names], rtol=1e-11)


@pytest.mark.parametrize(("activation", "weight_var", "growth"), [("linear", 1.0, 1.0), ("relu", 2.0, 2.0)])
def test_open_gates_have_the_plain_nets_variance(activation, weight_var, growth):
    """P - 1 = L for linear nets and 2 L for ReLU (Pennington et al. 2018); the log-volume is E ln|phi'| - 1/2."""
    second = theory.highway(activation, 20, math.inf, weight_var)["P"]
    assert second.to_numpy() == pytest.approx(1 + growth * np.arange(1, 21), rel=1e-12)
    volume = theory.highway_log_volume(activation, math.inf, weight_var)
    assert volume == (-math.inf if activation == "relu" else pytest.approx(-.5, abs=1e-12))


@pytest.mark.parametrize("carry", [.3, .5, .8])
def test_constant_gates_have_the_law_of_a_shifted_gaussian(carry):
    """gate_weight_var = 0, linear: J = a I + s G: log-volume ln a for a >= s, chi = a^2 + s^2, P as a sum of chi's."""
    a, s = carry, 1 - carry
    frame = theory.highway("linear", 10, math.log(s / a), 1.0, gate_weight_var=0.0)
    kappa = 1 - (a**2 / (a**2 + s**2))**2
    assert frame["chi"].to_numpy() == pytest.approx(np.full(10, a**2 + s**2), rel=1e-13)
    assert frame["P"].to_numpy() == pytest.approx(1 + kappa * np.arange(1, 11), rel=1e-12)
    volume = theory.highway_log_volume("linear", math.log(s / a), 1.0, 0.0)
    if a >= s:
        assert volume == pytest.approx(math.log(a), rel=1e-12)
    else:  # the mean of ln y(t) / 2 over the law of theory's residual layers
        t = (np.arange(20000) + .5) / 20000
        root = a**2 + (2 * t - 1) * s**2
        y = (root + np.sqrt(root**2 + 4 * t * (1 - t) * s**4)) / 2
        assert volume == pytest.approx(np.log(y).mean() / 2, abs=1e-4)  # the midpoint rule's error at t = 0


@pytest.mark.parametrize("init", [("tanh", 4.0, 2.0, -1.0, 1.0, .6), ("relu", 2.0, 2.0, -2.0, 1.0, .6),
                                  ("gelu", 3.0, 1.0, 0.0, 2.0, -.5), ("sigmoid", 2.0, 5.0, 1.0, .5, .2)], ids=str)
def test_two_equal_inputs_are_one(init):
    """c0 = 1 stays 1, and gradients equal; the slope of the cosine's map at 1 is chi / (q'/q)."""
    activation, weight_var, gate_var, gate_bias, q0, m0 = init
    arguments = (activation, 6, gate_bias, weight_var, gate_var, q0, m0)
    frame = theory.highway(*arguments, c0=1.0)
    assert frame["c"].to_numpy() == pytest.approx(np.ones(6), abs=1e-12)
    rounding = 1e-7 if activation == "relu" else 1e-11  # a kink makes sqrt(1e-16) of a cosine that is 1 - 1e-16
    assert frame["gradient_correlation"].to_numpy() == pytest.approx(np.ones(6), abs=rounding)
    step = 1e-6
    first = theory.highway(*arguments, c0=1 - step).iloc[0]
    tolerance = 5 * step**.5 if activation == "relu" else 1e-4  # a kink's map has a square root at 1
    assert (1 - first["c"]) / step == pytest.approx(first["chi"] / (first["q"] / q0), rel=tolerance)


def test_one_layer_by_brute_force():
    """m, q, c, chi of one ReLU layer with a mean and a bias by a sum over a million draws of (T, H, x), |z| < 4.5."""
    rng = np.random.default_rng(0)
    n, b, w, v, q0, m0, c0, s = 1_000_000, -.5, 2.0, 1.5, 1.2, .5, .6, .3
    found = theory.highway("relu", 1, b, w, v, q0, m0, c0, bias_var=s).iloc[0]

    def pair(variance: float, covariance: float, mean: float) -> np.ndarray:
        root = np.linalg.cholesky([[variance, covariance], [covariance, variance]])
        return mean + root @ rng.standard_normal((2, n))

    x = pair(q0 - m0**2, q0 * c0 - m0**2, m0)
    gate, h = expit(pair(v * q0, v * q0 * c0, b)), pair(w * q0 + s, w * q0 * c0 + s, 0.0)
    live, value = (h > 0) * 1.0, np.maximum(h, 0)
    y = gate * value + (1 - gate) * x
    slope = gate * (1 - gate)
    gain = w * gate[0]**2 * live[0] + v * slope[0]**2 * (value[0] - x[0])**2 + (1 - gate[0])**2
    gain_ab = (w * gate.prod(0) * live.prod(0) + v * slope.prod(0) * (value - x).prod(0) + (1 - gate).prod(0))
    for sample, predicted in ((y[0], found["m"]), (y[0]**2, found["q"]), (y.prod(0), found["q"] * found["c"]),
                              (gain, found["chi"]), (gain_ab, found["chi"] * found["gradient_correlation"])):
        assert abs(sample.mean() - predicted) < 4.5 * sample.std() / n**.5


@pytest.mark.parametrize(("m0", "w", "v"), [(0.0, 1.0, 1.0), (0.9, 0.5, 3.0), (1.0, 0.0, 9.0)])
def test_second_moment_of_a_first_linear_layer(m0, w, v):
    """chi^2 P = chi^2 + Var a^2 + E (2 a^2 gam^2 + gam^4), a = 1 - T, gam^2 = w T^2 + v T'^2 d^2, where d = H - x is
    normal: of mean -m0 and variance w + 1 - m0^2. Means over the gate by scipy's quadrature."""
    b, spread = -0.5, w + 1 - m0**2
    d2, d4 = m0**2 + spread, m0**4 + 6 * m0**2 * spread + 3 * spread**2

    def mean(i: int, j: int) -> float:  # E T^i (1 - T)^j
        return quad(lambda t: expit(b + v**0.5 * t) ** i * expit(-b - v**0.5 * t) ** j * norm.pdf(t), -12, 12,
                    epsabs=1e-14)[0]

    chi = mean(0, 2) + w * mean(2, 0) + v * d2 * mean(2, 2)
    crossed = w * mean(2, 2) + v * d2 * mean(2, 4)
    fourth = w**2 * mean(4, 0) + 2 * w * v * d2 * mean(4, 2) + v**2 * d4 * mean(4, 4)
    found = theory.highway("linear", 1, b, w, v, m0=m0, c0=1.0).iloc[0]
    assert found["chi"] == pytest.approx(chi, rel=1e-10)
    assert found["P"] == pytest.approx(1 + (mean(0, 4) - mean(0, 2)**2 + 2 * crossed + fourth) / chi**2, rel=1e-10)


def test_any_depth():
    """Depth 1200 at b_T = 0: q and the product of chi underflow to 0, cosines and P go on as at depth 100."""
    frame, limit = theory.highway("tanh", 1200, 0.0, 1.0), theory.highway_limit("tanh", 0.0, 1.0)
    assert frame[["q", "mean_squared"]].iloc[-1].tolist() == [0.0, 0.0]
    assert np.isfinite(frame).all(axis=None)
    assert frame["gradient_correlation"].iloc[-1] == pytest.approx(frame["gradient_correlation"][99], rel=1e-9)
    assert frame["P"].diff().iloc[-1] == pytest.approx(limit.variance_growth, rel=1e-9)


@pytest.mark.parametrize(("activation", "weight_var"),
                         [("relu", 2.0), ("leaky_relu", 1.5), ("erf", 1.0), ("gelu", 1.2)])
def test_limits_are_where_the_recursion_goes(activation, weight_var):
    """chi, q'/q, rho and the growth of P at layer 800; gelu's mean falls only 2 % faster than its length."""
    limit, frame = theory.highway_limit(activation, -1.0, weight_var), theory.highway(activation, 800, -1.0, weight_var)
    last = frame.iloc[-1]
    assert last["chi"] == pytest.approx(limit.chi, rel=1e-6)
    assert last["q"] / frame["q"].iloc[-2] == pytest.approx(limit.length_ratio, rel=1e-6)
    assert last["m"] / last["q"]**.5 == pytest.approx(limit.mean_ratio, abs=1e-6)
    assert frame["P"].diff().iloc[-1] == pytest.approx(limit.variance_growth, rel=1e-4)


@pytest.mark.parametrize(("gate_bias", "least"), [(-1, "6.437"), (-3, "41.17"), (-5, "297.8")])
def test_weights_that_would_keep_the_signal(gate_bias, least):
    """tanh: the signal decays up to weight_var 2 / s - 1, and the limit's error says where it does not."""
    critical = 2 / expit(gate_bias) - 1
    assert critical == given(least)
    assert theory.highway_limit("tanh", gate_bias, critical * .9999).xi_q > 1000
    with pytest.raises(ValueError, match=r"^highway_limit: `weight_var` must be small enough that the signal decays"):
        theory.highway_limit("tanh", gate_bias, critical * 1.0001)


ERRORS = {
    "activation": (lambda: theory.highway("rellu", 3, -1.0, 1.0), r"highway: `activation` .* Did you mean 'relu'\?"),
    "depth 0": (lambda: theory.highway("tanh", 0, -1.0, 1.0), r"highway: `depth` must be an integer of at least 1, go"),
    "depth 2.5": (lambda: theory.highway("tanh", 2.5, -1.0, 1.0), r"highway: `depth` must be an integer of at least 1"),
    "weights": (lambda: theory.highway("tanh", 3, -1.0, -1.0), r"highway: `weight_var` must be non-negative and fin"),
    "gate": (lambda: theory.highway("tanh", 3, -1.0, 1.0, -1.0), r"highway: `gate_weight_var` must be non-negative"),
    "bias": (lambda: theory.highway("tanh", 3, math.nan, 1.0), r"highway: `gate_bias` must be a number, got nan"),
    "biases": (lambda: theory.highway("tanh", 3, [-1.0, -2.0], 1.0), r"highway: `gate_bias` must be one number, got"),
    "no input": (lambda: theory.highway("tanh", 3, -1.0, 1.0, q0=0.0), r"highway: `q0` must be positive and finite"),
    "mean": (lambda: theory.highway("tanh", 3, -1.0, 1.0, m0=1.5), r"highway: `m0` must be at most sqrt\(q0\) = 1 in"),
    "cosine": (lambda: theory.highway("tanh", 3, -1.0, 1.0, c0=1.5), r"highway: `c0` must be between -1 and 1, got"),
    "apart": (lambda: theory.highway("tanh", 3, -1.0, 1.0, m0=.9, c0=0.0), r"highway: `c0` must be at least 2 m0\^2"),
    "nothing": (lambda: theory.highway("tanh", 3, math.inf, 0.0), r"highway: `weight_var` must be positive where gate"),
    "rule": (lambda: theory.suggest_gate_bias(0), r"suggest_gate_bias: `depth` must be an integer of at"),
    "question": (lambda: theory.suggest_gate_bias(9, "net"), r"suggest_gate_bias: `keeps` must be one of late-layer"),
    "sigmoid": (lambda: theory.highway_limit("sigmoid", -1.0, 1.0), r"highway_limit: `activation` must be 0 at 0, got"),
    "volume": (lambda: theory.highway_log_volume("tanh", -1.0, 1.0, m=2.0), r"highway_log_volume: `m` must be at most"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_errors_say_what_is_wrong(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)


# --- measured --------------------------------------------------------------------------------------------------------

DEPTH, NETS, COSINE = 8, 16, .5


class Highway(nn.Module):
    """Highway layers alone, without the plain one that a HighwayNet begins with."""

    def __init__(self, width: int, depth: int, activation: str, gate_bias: float):
        super().__init__()
        self.hidden_layers = nn.ModuleList(
            HighwayBlock(nn.Linear(width, 2 * width), activation, gate_bias) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.hidden_layers:
            x = block(x)
        return x


def drawn(width: int, depth: int, activation: str, gate_bias: float, weight_var: float, gate_var: float,
          seed: int) -> nn.Module:
    net = initialize(Highway(width, depth, activation, gate_bias).double(), "lecun_normal", seed=seed)
    for block in net.hidden_layers:
        block.affine.weight.data[:width] *= weight_var**.5
        block.affine.weight.data[width:] *= gate_var**.5
    return net


def two_inputs(width: int, seed: int) -> Tensor:
    """Two inputs of mean 0 and mean square 1 whose cosine is exactly COSINE."""
    noise = np.random.default_rng(seed).standard_normal((width, 3))
    basis = np.linalg.qr(np.column_stack([np.ones(width), noise]))[0][:, 1:].T * width**.5
    return torch.from_numpy(COSINE**.5 * basis[:1] + (1 - COSINE)**.5 * basis[1:])


def cosine_of_gradients(net: nn.Module, x: Tensor, seed: int) -> float:
    """Between what two inputs send back of one random error signal."""
    signal = torch.from_numpy(np.random.default_rng(seed).standard_normal(x.shape[1]))
    x = x.clone().requires_grad_()
    (back,) = torch.autograd.grad((net(x) @ signal).sum(), x)
    return torch.cosine_similarity(back[0], back[1], dim=0).item()


def z_score(sample: np.ndarray, predicted: float, allowance: float) -> float:
    """Deviation of the mean over nets from the prediction, less the O(1/n) allowance, in standard errors."""
    error = sample.std(ddof=1) / len(sample)**.5
    return max(abs(sample.mean() - predicted) - allowance * abs(predicted), 0.0) / error


@pytest.mark.parametrize("width", [200, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("init", [("tanh", -1.0, 1.0, 1.0), ("tanh", -3.0, 1.0, 1.0), ("relu", -2.0, 2.0, 2.0),
                                  ("tanh", 0.0, 4.0, 2.0)], ids=str)
def test_measured_nets_agree(init, width):
    """8 layers, 16 nets: q, m, c, gain of the error signal back to layer 1, gradient cosine, |z| < 4.5.

    Allowed besides the standard error over nets: a relative depth / width, the order of finite width; for m, which is 0
    where tanh is odd, the same share of the root mean square.
    """
    activation, gate_bias, weight_var, gate_var = init
    predicted = theory.highway(activation, DEPTH, gate_bias, weight_var, gate_var, c0=COSINE)
    rows = []
    for seed in range(NETS):
        net, x = drawn(width, DEPTH, *init, seed=seed), two_inputs(width, seed)
        frame = gradient_flow(net, x).frame
        error, last = frame["log10_error_signal_norm"], frame.iloc[-1]
        rows.append((last["activation_mean_square"], last["activation_mean"] + last["activation_mean_square"]**.5,
                     last["activation_correlation"], 10**(2 * (error.iloc[0] - error.iloc[-1])),
                     cosine_of_gradients(net, x, seed)))
    first, last = predicted.iloc[0], predicted.iloc[-1]
    expected = (last["q"], last["m"] + last["q"]**.5, last["c"], last["mean_squared"] / first["mean_squared"],
                last["gradient_correlation"])
    z = [z_score(sample, value, DEPTH / width) for sample, value in zip(np.array(rows).T, expected, strict=True)]
    assert max(z) < 4.5, z


@pytest.mark.parametrize("width", [128, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("init", [("tanh", -1.0, 1.0, 1.0), ("tanh", -3.0, 1.0, 1.0), ("relu", -3.0, 2.0, 1.0)],
                         ids=str)
def test_measured_spectra_agree(init, width):
    """6 layers, 16 nets: mean squared singular value and P; ReLU's largest is the mean mode, left out."""
    depth = 6
    predicted = theory.highway(init[0], depth, *init[1:]).iloc[-1]
    measured = []
    for seed in range(16):
        squares = jacobian_spectrum(drawn(width, depth, *init, seed=seed), two_inputs(width, seed)[:1],
                                    method="dense").singular_values[0].numpy()**2
        if init[0] == "relu":
            squares = squares[1:]
        measured.append((squares.mean(), (squares**2).mean() / squares.mean()**2))
    for sample, name in zip(np.array(measured).T, ("mean_squared", "P"), strict=True):
        assert z_score(sample, predicted[name], 2 * depth / width) < 4.5, name


@pytest.mark.parametrize(("activation", "weight_var", "gate_bias"), [("tanh", 1.0, -1.0), ("relu", 2.0, -1.0)])
def test_measured_volume_agrees(activation, weight_var, gate_bias):
    """One layer of width 400, 16 nets, Gaussian inputs: (1/n) ln|det J|, |z| < 4.5 beyond 2 / n."""
    width, sample = 400, []
    for seed in range(16):
        net = drawn(width, 1, activation, gate_bias, weight_var, 1.0, seed)
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, width)))
        x = (x - x.mean()) / x.std(correction=0)
        spectrum = jacobian_spectrum(net, x, method="dense")
        sample.append(spectrum.log_singular_values.mean().item())
    predicted = theory.highway_log_volume(activation, gate_bias, weight_var)
    assert z_score(np.array(sample), predicted, 2 / width / abs(predicted)) < 4.5
