"""Initial weights: their distributions, the same seed the same weights, and nothing else is touched."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES, NETS, assert_same, fingerprint
from scipy import stats
from scipy.integrate import quad
from scipy.special import psi
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from flowstudy import theory
from flowstudy.nets import SCHEMES, HighwayBlock, HighwayNet, PlainBlock, PlainNet, initialize
from flowstudy.train import stack

# layer, fan_in, fan_out: fan_in counts the inputs that one output sees, fan_out the outputs that one input reaches.
LAYERS = {
    "linear": (lambda: nn.Linear(120, 80), 120, 80),
    "conv1d": (lambda: nn.Conv1d(24, 32, 5), 24 * 5, 32 * 5),
    "conv2d": (lambda: nn.Conv2d(12, 24, (3, 5)), 12 * 15, 24 * 15),
    "conv2d-grouped": (lambda: nn.Conv2d(32, 64, 3, groups=4), 8 * 9, 16 * 9),
    "conv3d": (lambda: nn.Conv3d(6, 10, 3), 6 * 27, 10 * 27),
}
VARIANCE = {
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,
    "he_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
    "lecun_uniform": lambda fan_in, fan_out: 1 / fan_in,
    "random_walk": lambda fan_in, fan_out: math.exp(1 / fan_in) / fan_in,  # linear units: g^2 / N, g = exp(1 / 2N)
    "random_walk_exact": lambda fan_in, fan_out: math.exp(-psi(fan_in / 2)) / 2,  # g^2 = (N / 2) exp(-psi(N / 2))
    "critical": lambda fan_in, fan_out: 1 / fan_in,  # linear units
}
OWN_GAIN = {"he_normal": math.sqrt(2), "he_uniform": math.sqrt(2)}  # 1 elsewhere
ACTIVATION = {"activation": "linear"}  # only random_walk, random_walk_exact and critical ask


def weights_of(net: nn.Module) -> list[torch.Tensor]:
    return [layer.weight.detach() for layer in net.modules() if isinstance(layer, nn.Linear)]


# --- distributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [None, 0.7])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scheme", VARIANCE)
def test_entries_have_the_schemes_distribution(scheme, layer, gain):
    """Mean 0 and the scheme's variance within 5 standard errors, the right shape (Kolmogorov-Smirnov) and bounds.

    Of n entries the mean has variance var / n, the mean square 2 var^2 / n (normal) or 0.8 var^2 / n (uniform).
    """
    make, fan_in, fan_out = LAYERS[layer]
    w = initialize(make().double(), scheme, seed=1, gain=gain, **ACTIVATION).weight.detach().flatten().numpy()
    var = VARIANCE[scheme](fan_in, fan_out)
    if gain is not None:  # replaces the scheme's own
        own = math.sqrt(var * fan_in) if scheme.startswith("random_walk") else OWN_GAIN.get(scheme, 1.0)
        var *= (gain / own) ** 2
    uniform = scheme.endswith("uniform")
    assert abs(w.mean()) < 5 * math.sqrt(var / w.size)
    assert abs(np.square(w).mean() / var - 1) < 5 * math.sqrt((0.8 if uniform else 2) / w.size)
    bound = math.sqrt(3 * var)
    shape = stats.uniform(-bound, 2 * bound) if uniform else stats.norm(0, math.sqrt(var))
    assert stats.kstest(w, shape.cdf).pvalue > 1e-5  # 80 cases: a reseeding fails once in 1,250
    if uniform:
        assert bound * (1 - 20 / w.size) < np.abs(w).max() <= bound  # the largest of n misses this with odds e^-20


@pytest.mark.parametrize("gain", [None, 1.5])
@pytest.mark.parametrize("make", [
    lambda: nn.Linear(40, 40), lambda: nn.Linear(30, 70), lambda: nn.Linear(70, 30), lambda: nn.Linear(5, 1),
    lambda: nn.Conv2d(4, 50, 3), lambda: nn.Conv2d(16, 20, 3), lambda: nn.Conv2d(16, 32, 3, groups=4),
], ids=["square", "tall", "wide", "row", "conv-tall", "conv-wide", "conv-grouped"])
def test_orthogonal_is_orthogonal(make, gain):
    """W^T W = gain^2 I where tall, W W^T = gain^2 I where wide, to 1e-12; a kernel is one matrix, a row per output."""
    w = initialize(make().double(), "orthogonal", gain=gain).weight.detach().flatten(1)
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    assert_close(gram, (gain or 1.0) ** 2 * torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-12)


def test_orthogonal_highway_layer_has_two_orthogonal_matrices():
    """H and T are orthogonal each, with the block's own fans, and differ."""
    block = HighwayBlock(nn.Linear(30, 60), "tanh").double()
    initialize(block, "orthogonal")
    h, t = block.affine.weight.detach().chunk(2)
    for w in (h, t):
        assert_close(w.T @ w, torch.eye(30, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not torch.allclose(h, t)


def test_glorot_highway_layer_has_the_fans_of_one_matrix():
    """Glorot's variance for H and for T is 2 / (width + width), not that of the fused (2 width, width) matrix: 5 se."""
    width = 150
    block = initialize(HighwayBlock(nn.Linear(width, 2 * width), "tanh").double(), "glorot_normal")
    for w in block.affine.weight.detach().chunk(2):
        assert abs(w.square().mean() * width - 1) < 5 * math.sqrt(2 / width**2)


def test_orthogonal_is_haar_distributed():
    """Haar measure is blind to sign flips: E trace = 0 and E trace^2 = 1 (var 2, Diaconis & Shahshahani 1994), 4.5 se.

    QR without the sign correction has a trace near -n instead.
    """
    n, draws = 8, 2000
    layer = nn.Linear(n, n, bias=False).double()
    trace = np.array([initialize(layer, "orthogonal", seed=seed).weight.trace().item() for seed in range(draws)])
    assert abs(trace.mean()) < 4.5 / math.sqrt(draws)
    assert abs(np.square(trace).mean() - 1) < 4.5 * math.sqrt(2 / draws)


# --- random walk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fan_in, linear, relu", [
    (6, 1.086904, 1.973694), (16, 1.031743, 1.544668), (64, 1.007843, 1.442033), (100, 1.005013, 1.431709),
    (256, 1.001955, 1.420921), (1024, 1.000488, 1.415876),
])
def test_random_walk_gains(fan_in, linear, relu):
    """Gains are Sussillo & Abbott's, tabulated to 6 decimals, relative to LeCun's draws of the same seed."""
    for activation, gain in (("linear", linear), ("relu", relu), ("tanh", 1.13)):
        net = nn.Sequential(nn.Linear(fan_in, 3), PlainBlock(nn.Linear(3, 3))).double()
        walk, unit = (initialize(copy.deepcopy(net), scheme, activation=activation)[0].weight
                      for scheme in ("random_walk", "lecun_normal"))
        assert_close(walk / unit, torch.full_like(unit, gain), rtol=0, atol=6e-7)


@pytest.mark.parametrize("kind", [PlainNet, HighwayNet])
def test_random_walk_gain_is_the_layers_own(kind):
    """Each layer has the gain of its own fan_in and activation: ReLU's in the body, a linear unit's in the read-out."""
    net = kind(64, 16, 3, 4, "relu").double()
    walk, unit = (weights_of(initialize(copy.deepcopy(net), scheme)) for scheme in ("random_walk", "lecun_normal"))
    for w, u, gain in zip(walk, unit, [1.442033, 1.544668, 1.544668, 1.031743], strict=True):
        assert_close(w / u, torch.full_like(u, gain), rtol=0, atol=6e-7)


def test_random_walk_reads_the_activation_modules():
    """In any module whose activation modules are of one kind, that kind tells the gain as `activation` would."""
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(True), nn.Linear(16, 2)).double()
    told = initialize(copy.deepcopy(net), "random_walk", activation="relu")
    assert_same(dict(initialize(net, "random_walk").state_dict()), dict(told.state_dict()))
    unit = initialize(copy.deepcopy(net), "lecun_normal")
    assert_close((net[2].weight / unit[2].weight).mean().item(), 1.544668, rtol=0, atol=6e-7)


@pytest.mark.parametrize("fan_in, linear, relu", [
    (6, 1.091894, 1.848902), (16, 1.032414, 1.544611), (64, 1.007884, 1.442861), (1024, 1.000489, 1.415944),
])
def test_exact_random_walk_gains(fan_in, linear, relu):
    """Gains that keep the mean log norm exactly, tabulated to 6 decimals, over LeCun's draws of the same seed."""
    for activation, gain in (("linear", linear), ("relu", relu)):
        net = nn.Sequential(nn.Linear(fan_in, 3), PlainBlock(nn.Linear(3, 3))).double()
        walk, unit = (initialize(copy.deepcopy(net), scheme, activation=activation)[0].weight
                      for scheme in ("random_walk_exact", "lecun_normal"))
        assert_close(walk / unit, torch.full_like(unit, gain), rtol=0, atol=6e-7)


# --- biases and the critical line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation, bias_var, weight_var", [
    ("tanh", 0.0, 1.0), ("tanh", .05, 1.76095463960674), ("tanh", .5, 2.84316746), ("erf", 0.0, math.pi / 4),
    ("erf", .05, 1.37583901), ("gelu", .21444471, 1.96627484), ("relu", 0.0, 2.0), ("linear", .3, 1.0),
])
def test_critical_weights_lie_on_the_edge_of_chaos(activation, bias_var, weight_var):
    """Tabulated weight variances; the weights are LeCun's of the same seed times the gain, the read-out's 1 times."""
    net = PlainNet(40, 20, 3, 4, activation).double()
    critical, unit = (weights_of(initialize(copy.deepcopy(net), scheme, bias_var=bias_var))
                      for scheme in ("critical", "lecun_normal"))
    for w, u in zip(critical[:-1], unit[:-1], strict=True):
        assert_close(w, u * math.sqrt(weight_var), rtol=1e-8, atol=0)
    assert_close(critical[-1], unit[-1])


class Halved(PlainBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.affine(x)) / 2


def chain(*modules: nn.Module, width: int = 20) -> nn.Sequential:
    return nn.Sequential(*(part for module in modules for part in (nn.Linear(width, width), module)),
                         nn.Linear(width, 4)).double()


@pytest.mark.parametrize("make, options, bias_var, weight_var", [
    (lambda: nn.LeakyReLU(0.5), {}, 0.0, 2 / 1.25),
    (lambda: nn.LeakyReLU(), {}, 0.0, 2 / 1.0001),
    (lambda: nn.LeakyReLU(-0.5), {}, 0.0, 2 / 1.25),
    (lambda: nn.LeakyReLU(1.0), {}, 0.0, 1.0),
    (lambda: nn.PReLU(20, init=0.25), {}, 0.0, 2 / 1.0625),
    (lambda: nn.Hardtanh(-3.0, 3.0), {}, 0.0, 1.0),
    (lambda: nn.Hardtanh(-3.0, 3.0), {}, 0.45, theory.critical_weight_var("hard_tanh", 0.05)),  # 3 clip(h / 3)
    (lambda: nn.Hardtanh(-0.2, 7.0), {}, 0.0, 1.0),
    (lambda: nn.ReLU6(), {}, 0.0, 2.0),
    (lambda: nn.GELU(), {}, 0.21444471, 1.96627484),
    (lambda: nn.Softplus(), {"activation": "relu"}, 0.0, 2.0),  # what is given is taken
    (lambda: Halved(nn.Linear(20, 20)), {"activation": "tanh"}, 0.0, 1.0),
], ids=range(12))
def test_critical_weights_follow_the_activations_options(make, options, bias_var, weight_var):
    """Closed forms at the slope and the range that the modules have, not at torch's defaults."""
    net = chain(make(), make())
    critical, unit = (weights_of(initialize(copy.deepcopy(net), scheme, bias_var=bias_var, **options))
                      for scheme in ("critical", "lecun_normal"))
    for w, u in zip(critical[:-1], unit[:-1], strict=True):
        assert_close(w, u * math.sqrt(weight_var), rtol=1e-8, atol=0)
    assert_close(critical[-1], unit[-1])


def test_the_named_activation_has_the_options_of_its_modules():
    """Two kinds of modules: the name says which is meant, the modules say with which slope or range."""
    for name, module, weight_var in (("leaky_relu", nn.LeakyReLU(0.5), 1.6), ("hard_tanh", nn.ReLU6(), 2.0)):
        net = chain(module, nn.Sigmoid())
        critical, unit = (weights_of(initialize(copy.deepcopy(net), scheme, activation=name))
                          for scheme in ("critical", "lecun_normal"))
        assert_close(critical[0], unit[0] * math.sqrt(weight_var))


@pytest.mark.parametrize("low, high", [(-0.4, 2.0), (0.0, 6.0), (-1.0, 0.0)])
def test_critical_weights_of_a_lopsided_range(low, high):
    """w E phi'^2 = 1 at the fixed point q = w E phi^2 + bias_var, found by iteration, means by scipy's quadrature."""
    bias_var, net = 0.07, chain(nn.Hardtanh(low, high))
    critical, unit = (weights_of(initialize(copy.deepcopy(net), scheme, bias_var=bias_var))[0]
                      for scheme in ("critical", "lecun_normal"))
    w, q = (critical[0, 0] / unit[0, 0]).item()**2, bias_var

    def mean(function, q: float) -> float:
        pieces = itertools.pairwise([-12 * q**0.5, low, high, 12 * q**0.5])
        return sum(quad(lambda h: function(h) * stats.norm.pdf(h, 0, q**0.5), *ends, epsabs=1e-12)[0]
                   for ends in pieces if ends[0] < ends[1])

    for _ in range(400):
        q = w * mean(lambda h: min(max(h, low), high)**2, q) + bias_var
    assert w * mean(lambda h: float(low < h < high), q) == pytest.approx(1.0, abs=1e-6)


def test_leaky_signals_keep_their_mean_square_whatever_the_slope():
    """E |h_L|^2 = E |h_0|^2 at any width and depth without biases: z < 4.5 over 300 nets of slope 0.5."""
    ratios = []
    for seed in range(300):
        net = initialize(chain(*[nn.LeakyReLU(0.5)] * 6, width=30), "critical", seed=seed)[:-1]  # no read-out
        x = torch.randn(1, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            ratios.append((net(x).square().mean() / x.square().mean()).item())
    assert abs(np.mean(ratios) - 1) < 4.5 * np.std(ratios) / math.sqrt(300)
    assert np.std(ratios) / math.sqrt(300) < 0.06  # weights for slope 0.01 make it 3.8


@pytest.mark.parametrize("last, activation", [(nn.Linear(4, 4), "linear"), (nn.Conv2d(4, 4, 1), "relu")])
def test_a_last_convolution_is_no_read_out(last, activation):
    """A net that ends in a linear layer has no activation behind it; one that ends in a convolution has its ReLU."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), last, nn.ReLU()).double()
    walked, unit = (initialize(copy.deepcopy(net), scheme)[2].weight.detach()
                    for scheme in ("random_walk", "lecun_normal"))
    ratio = (walked / unit).numpy()
    np.testing.assert_allclose(ratio, np.full_like(ratio, theory.random_walk_gain(activation, 4)), rtol=1e-12)


def test_bias_variance_is_that_of_every_ordinary_bias():
    """N(0, bias_var), 5 se and Kolmogorov-Smirnov; gate biases stay; weights are those without biases."""
    width, bias_var = 2000, 0.3
    block = HighwayBlock(nn.Linear(width, 2 * width), "tanh", gate_bias=-3.0)
    initialize(block, "he_normal", seed=4, bias_var=bias_var)
    bias, gate = (half.detach().double().numpy() for half in block.affine.bias.chunk(2))
    assert abs(np.square(bias).mean() / bias_var - 1) < 5 * math.sqrt(2 / width)
    assert stats.kstest(bias, stats.norm(0, math.sqrt(bias_var)).cdf).pvalue > 1e-5
    assert (gate == -3).all()
    drawn = block.affine.weight.clone()
    assert torch.equal(initialize(block, "he_normal", seed=4).affine.weight, drawn)
    for weights in (drawn[:width, 0], drawn[0]):  # of one unit's each; the first that are drawn
        assert abs(np.corrcoef(bias, weights.detach().numpy())[0, 1]) * math.sqrt(width) < 5


# --- the same seed, the same weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["PlainNet-relu-L9", "HighwayNet-relu-L9"])  # every scheme knows ReLU
def test_seed_alone_decides_the_weights(name, scheme):
    """Twice the same; float32 is float64 rounded; the global random state has no say."""
    once = initialize(NETS[name](), scheme, seed=3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  the global state must not matter
    again = initialize(NETS[name](), scheme, seed=3)
    assert_same(dict(once.state_dict()), dict(again.state_dict()))
    double = initialize(NETS[name]().double(), scheme, seed=3)
    assert_same({key: value.float() for key, value in double.state_dict().items()}, dict(once.state_dict()))


def test_seed_gives_the_same_net_on_every_device(device):
    """A net initialised on a device has the weights of the net initialised on the CPU, to the last bit."""
    there = initialize(HighwayNet(FEATURES, 8, 4, CLASSES).to(device), "orthogonal", seed=5)
    here = initialize(HighwayNet(FEATURES, 8, 4, CLASSES), "orthogonal", seed=5)
    assert_same({key: value.cpu() for key, value in there.state_dict().items()}, dict(here.state_dict()))


def test_a_net_is_the_same_among_others():
    """Net by net, in another order, or out of a stack: a seed's weights do not depend on the company."""
    alone = {seed: initialize(PlainNet(FEATURES, 7, 4, CLASSES), "he_normal", seed=seed) for seed in (4, 0, 2)}
    together = stack([initialize(PlainNet(FEATURES, 7, 4, CLASSES), "he_normal", seed=seed) for seed in range(5)])
    for seed, net in alone.items():
        assert_same(dict(net.state_dict()), dict(together.net(seed).state_dict()))


@pytest.mark.parametrize("kind", [PlainNet, HighwayNet])
def test_deeper_net_begins_like_the_shallower(kind):
    """The hidden layers that two depths share have the same draws."""
    shallow, deep = (initialize(kind(FEATURES, 7, depth, CLASSES), "he_normal", seed=1) for depth in (4, 9))
    for one, other in zip(shallow.hidden_layers, deep.hidden_layers, strict=False):
        assert_same(dict(one.state_dict()), dict(other.state_dict()))


def test_other_seeds_and_layers_are_uncorrelated():
    """Weights of any two of (seed, layer) correlate as noise does: |r| sqrt(n) < 5 over 276 pairs (odds 1.6e-4)."""
    size = 40
    draws = [w.flatten().numpy() for seed in (0, 1, 2, 10**6)
             for w in weights_of(initialize(HighwayNet(size, size, 3, size).double(), "lecun_normal", seed=seed))]
    matrices = [m for w in draws for m in np.split(w, w.size // size**2)]
    assert len(matrices) == 4 * (1 + 2 * 2 + 1)
    for one, other in itertools.combinations(matrices, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) * size < 5


# --- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gate_biases_survive_and_other_biases_become_zero(scheme):
    """b_T keeps its value, bit for bit; H's, the input layer's and the read-out's biases are 0."""
    net = HighwayNet(FEATURES, 7, 4, CLASSES, "relu", gate_bias=-3.3)
    net.blocks[1].set_gate_bias(-torch.inf)
    before = [bias.clone() for bias in net.gate_biases]
    initialize(net, scheme)
    assert_same(before, net.gate_biases)
    others = [net.input.affine.bias, net.readout.bias, *(block.affine.bias[:7] for block in net.blocks)]
    assert all(not bias.any() for bias in others)


def test_only_weights_and_biases_of_affine_layers_change():
    """Norms, embeddings, buffers, gradients, modes, hooks, global random states stay; parameters stay in place."""
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Conv1d(1, 2, 3), nn.Embedding(5, 3),
                          nn.Linear(4, 2))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].requires_grad_(False)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    before = fingerprint(model)
    assert initialize(model, "he_normal") is model
    after = fingerprint(model)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    drawn = {f"{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")}
    for state in (before, after):
        state["tensors"] = {name: value for name, value in state["tensors"].items() if name not in drawn}
    assert_same(before, after)


class Steep(nn.LeakyReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def uneven(module: nn.PReLU) -> nn.PReLU:
    with torch.no_grad():
        module.weight[0] = 0.5
    return module


ERRORS = {
    "misspelt scheme": (lambda: PlainNet(3, 3, 2, 2), {"scheme": "he_norml"},
                        r"`scheme` must be one of glorot_normal, .*, got 'he_norml'\. Did you mean 'he_normal'\?"),
    "gain 0": (lambda: PlainNet(3, 3, 2, 2), {"gain": 0.0}, r"`gain` must be positive and finite, got 0\.0"),
    "gain negative": (lambda: PlainNet(3, 3, 2, 2), {"gain": -1.0}, r"`gain` must be positive and finite, got -1\.0"),
    "gain nan": (lambda: PlainNet(3, 3, 2, 2), {"gain": math.nan}, r"`gain` must be positive and finite, got nan"),
    "gain inf": (lambda: PlainNet(3, 3, 2, 2), {"gain": math.inf}, r"`gain` must be positive and finite, got inf"),
    "gain text": (lambda: PlainNet(3, 3, 2, 2), {"gain": "2"}, r"`gain` must be positive and finite, got '2'"),
    "seed negative": (lambda: PlainNet(3, 3, 2, 2), {"seed": -1}, r"`seed` must be a non-negative integer, got -1"),
    "seed fraction": (lambda: PlainNet(3, 3, 2, 2), {"seed": 0.5}, r"`seed` must be a non-negative integer, got 0\.5"),
    "bias negative": (lambda: PlainNet(3, 3, 2, 2), {"bias_var": -.1}, r"`bias_var` must be non-negative and finite"),
    "no weights": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), {}, r"got Sequential without any\. Initialise"),
    "gelu walk": (lambda: PlainNet(3, 3, 2, 2, "gelu"), {"scheme": "random_walk"},
                  r"'random_walk' knows gains for linear, relu and tanh, got activation 'gelu'\. Pass `activation=`"),
    "exact tanh walk": (lambda: PlainNet(3, 3, 2, 2, "tanh"), {"scheme": "random_walk_exact"},
                        r"'random_walk_exact' knows gains for linear and relu, got activation 'tanh'\. Pass"),
    "critical relu": (lambda: PlainNet(3, 3, 2, 2, "relu"), {"scheme": "critical", "bias_var": .05},
                      r"'critical' with bias_var 0\.05: "),
    "critical what": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), {"scheme": "critical"},
                      r"'critical' must know the activation, got None"),
    "mixed walk": (lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)),
                   {"scheme": "random_walk"}, r"'random_walk' knows gains for .*, got activation 'relu and tanh'"),
    "two slopes": (lambda: chain(nn.LeakyReLU(0.1), nn.LeakyReLU(0.5)), {"scheme": "critical"},
                   r"'critical' must know the activation, got leaky_relu\(0\.1\) and leaky_relu\(0\.5\)"),
    "two slopes, named": (lambda: chain(nn.LeakyReLU(0.1), nn.LeakyReLU(0.5)),
                          {"scheme": "critical", "activation": "leaky_relu"}, r"got leaky_relu\(0\.1\) and leaky_relu"),
    "slopes by unit": (lambda: nn.Sequential(nn.Linear(3, 2), uneven(nn.PReLU(2)), nn.Linear(2, 2)),
                       {"scheme": "critical"}, r"must know the activation, got PReLU\(num_parameters=2\)"),
    "approximate gelu": (lambda: chain(nn.GELU("tanh")), {"scheme": "critical"},
                         r"must know the activation, got GELU\(approximate='tanh'\)\. Pass `activation=`, or `gain=`"),
    "elu": (lambda: chain(nn.ELU(2.0)), {"scheme": "critical"}, r"must know the activation, got ELU\(alpha=2\.0\)"),
    "softplus beside relu": (lambda: chain(nn.ReLU(), nn.Softplus(3.0)), {"scheme": "critical"},
                             r"must know the activation, got relu and Softplus\(beta=3\.0, threshold=20"),
    "subclass": (lambda: chain(Steep(0.5)), {"scheme": "critical"}, r"must know the activation, got Steep\("),
    "block of its own": (lambda: chain(Halved(nn.Linear(20, 20), "relu")), {"scheme": "critical"},
                         r"must know the activation, got None"),
    "range without 0": (lambda: chain(nn.Hardtanh(1.0, 2.0)), {"scheme": "critical"},
                        r"'critical' with bias_var 0\.0: hard_tanh: `low` and `high` must be finite numbers around 0"),
    "leaky with biases": (lambda: chain(nn.LeakyReLU(0.5)), {"scheme": "critical", "bias_var": 0.1},
                          r"`bias_var` must be 0 for leaky_relu of slope 0\.5, got 0\.1\. .* weight_var 1\.6 without"),
    "parametrised": (lambda: nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3))), {},
                     r"every weight must be an ordinary parameter.*Remove its parametrization"),
    "lazy": (lambda: nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3)), {},
             r"every weight must be an ordinary parameter.*run one forward pass"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_errors_leave_the_model_as_it_was(case):
    """What cannot be done is refused in one line that says why, and no parameter has changed by then."""
    make, arguments, message = ERRORS[case]
    model = make()
    before = {} if case == "lazy" else fingerprint(model)
    first = next(model.parameters()).clone()
    with pytest.raises(ValueError, match=f"^initialize: .*{message}") as caught:
        initialize(model, **({"scheme": "he_normal"} | arguments))
    assert "\n" not in str(caught.value)
    assert torch.equal(next(model.parameters()), first)
    if before:
        assert_same(before, fingerprint(model))
