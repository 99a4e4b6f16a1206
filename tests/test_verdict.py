"""Verdicts: nets whose answer is known from theory, each over many seeds; frames worked by hand; the sentence."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import flowstudy as fs
from flowstudy.measure import gradient_flow, stacked_gradient_flow
from flowstudy.measure.gradients.advice import ADVICE
from flowstudy.measure.gradients.verdict import THRESHOLD, verdict_of

WIDTH = 128
SEEDS = pytest.mark.parametrize("seeds, at_least", [(5, 5), pytest.param(20, 19, marks=pytest.mark.slow)],
                                ids=["5 seeds", "20 seeds"])


# --- known answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A net of ours at given variances times fan_in; `log_chi` is ln chi_1 per layer where it is one number.

    Source of the tanh and highway figures: Schoenholz et al. 2017 by quadrature; the highway recursion. A verdict
    turns where depth * |log_chi| is 6; every case keeps more than three standard deviations away from that.
    """

    kind: str
    activation: str
    depth: int
    weight_var: float = 1.0
    bias_var: float = 0.0
    log_chi: float | None = None
    scheme: str | None = None  # draws by `initialize` in place of the variances
    options: dict = field(default_factory=dict)
    gate_bias: float | None = None


NETS = {
    "tanh, ordered": Case("vanishing", "tanh", 50, 1.0, 0.05, math.log(0.75903165)),
    "tanh, critical": Case("stable", "tanh", 50, 1.76095464, 0.05, 0.0),
    "tanh, chaotic": Case("chaotic", "tanh", 50, 4.0, 0.05, math.log(1.34240241)),
    "tanh, weakly chaotic": Case("chaotic", "tanh", 140, 2.25, 0.05, math.log(1.09233798)),
    "tanh, Glorot": Case("stable", "tanh", 20, scheme="glorot_normal"),
    "tanh, Glorot uniform": Case("stable", "tanh", 20, scheme="glorot_uniform"),
    "tanh, gain 5/3 of calculate_gain": Case("chaotic", "tanh", 60, (5 / 3) ** 2, 0.0, math.log(1.209831)),
    "tanh, He": Case("chaotic", "tanh", 120, 2.0, 0.0, math.log(1.10552882)),
    "tanh, default nn.Linear": Case("vanishing", "tanh", 20, 1 / 3, 1 / (3 * WIDTH), math.log(1 / 3)),
    "ReLU, default nn.Linear": Case("vanishing", "relu", 20, 1 / 3, 1 / (3 * WIDTH), math.log(1 / 6)),
    "ReLU, Glorot": Case("vanishing", "relu", 30, scheme="glorot_normal", log_chi=math.log(1 / 2)),
    "ReLU, Glorot, shallow": Case("stable", "relu", 5, scheme="glorot_normal", log_chi=math.log(1 / 2)),
    "ReLU, He": Case("stable", "relu", 30, scheme="he_normal", log_chi=0.0),
    "ReLU, He uniform": Case("stable", "relu", 30, scheme="he_uniform", log_chi=0.0),
    "ReLU, random walk": Case("stable", "relu", 30, scheme="random_walk", log_chi=0.0),
    "ReLU, variance 8": Case("exploding", "relu", 20, 8.0, 0.0, math.log(4)),
    "ReLU, orthogonal, gain sqrt 2": Case("stable", "relu", 30, scheme="orthogonal", options={"gain": 2**0.5}),
    "ReLU, orthogonal, gain 1": Case("vanishing", "relu", 30, scheme="orthogonal", log_chi=math.log(1 / 2)),
    "linear, orthogonal": Case("stable", "linear", 100, scheme="orthogonal", log_chi=0.0),
    "linear, orthogonal, gain 1.2": Case("exploding", "linear", 50, scheme="orthogonal", options={"gain": 1.2}),
    "linear, LeCun": Case("stable", "linear", 50, scheme="lecun_normal", log_chi=0.0),
    "sigmoid, Glorot": Case("vanishing", "sigmoid", 20, scheme="glorot_normal", log_chi=math.log(0.05572071)),
    "highway tanh, b_T = -1": Case("vanishing", "tanh", 50, scheme="glorot_normal", gate_bias=-1.0),
    "highway tanh, b_T = -2": Case("vanishing", "tanh", 50, scheme="glorot_normal", gate_bias=-2.0),
    "highway tanh, b_T = -5": Case("stable", "tanh", 50, scheme="glorot_normal", gate_bias=-5.0),
    "highway ReLU, b_T = -5": Case("stable", "relu", 50, scheme="he_normal", gate_bias=-5.0),
    "highway, gates closed": Case("stable", "tanh", 60, scheme="glorot_normal", gate_bias=-math.inf),
}


def stack_of(case: Case, seeds: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """One template and the stacked weights of a net per seed."""
    sizes = WIDTH, WIDTH, case.depth, 10, case.activation
    net = fs.PlainNet(*sizes) if case.gate_bias is None else fs.HighwayNet(*sizes, gate_bias=case.gate_bias)
    states = []
    for seed in range(seeds):
        if case.scheme is None:
            generator = torch.Generator().manual_seed(seed)
            states.append({name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
                           * math.sqrt(case.weight_var / p.shape[1] if p.ndim == 2 else case.bias_var)
                           for name, p in net.named_parameters()})
        else:
            fs.initialize(net, case.scheme, seed=seed, **case.options)
            states.append({name: p.detach().clone() for name, p in net.named_parameters()})
    return net, {name: torch.stack([state[name] for state in states]) for name in states[0]}


@SEEDS
@pytest.mark.parametrize("name", NETS)
def test_nets_of_known_phase_get_their_verdict(name, seeds, at_least):
    """Ordered, critical and chaotic nets, by author of the initialisation and by gate bias: 5 of 5 seeds, 19 of 20.

    Where chi_1 is one number, the fitted slope is its logarithm within 4.5 standard errors over the seeds, a tenth
    more for what finite width takes off (5 / (2 n) and less).
    """
    case = NETS[name]
    net, state = stack_of(case, seeds)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, WIDTH, generator=generator), torch.randint(10, (8,), generator=generator)
    measured = stacked_gradient_flow(net, state, x, y)
    frames = [pd.DataFrame({key: value[i].numpy() for key, value in measured.items() if value.ndim == 2}
                           | {"layer": range(1, case.depth + 1)}) for i in range(seeds)]
    verdicts = [verdict_of(frame) for frame in frames]
    assert sum(verdict.kind == case.kind for verdict in verdicts) >= at_least
    if case.log_chi is not None and case.depth >= 20:
        slopes = 2 * np.log([verdict.factor for verdict in verdicts])
        error = slopes.std(ddof=1) / math.sqrt(seeds)
        assert abs(slopes.mean() - case.log_chi) < 4.5 * error + 5 / (2 * WIDTH) + 0.1 * abs(case.log_chi)


class Residual(nn.Module):
    def __init__(self, width: int, norm: bool, scale: float = 1.0):
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.layer, self.scale = nn.Linear(width, width), scale
        nn.init.kaiming_normal_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.layer(torch.relu(self.norm(x)))


def residual(depth: int, norm: bool, scale: float = 1.0) -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), *(Residual(32, norm, scale) for _ in range(depth)), nn.Linear(32, 10))


def dead_relu() -> nn.Module:
    model = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(32, 32), nn.ReLU(inplace=True))), nn.Linear(32, 10))
    nn.init.constant_(model[6].bias, -100.0)
    return model


def normalised(depth: int) -> nn.Module:
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())),
                         nn.Linear(32, 10))


def default(depth: int) -> nn.Module:
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(32, 32), nn.Tanh())), nn.Linear(32, 10))


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "pre-activation ResNet": ("stable", lambda: residual(20, norm=True)),  # gradients grow like depth, not exp(depth)
    "residual, no norm": ("exploding", lambda: residual(24, norm=False)),  # chi_1 = 2 per block
    "residual, branches / depth": ("stable", lambda: residual(24, norm=False, scale=1 / 24)),
    "dead ReLU": ("dead", dead_relu),
    "plain with batch norm": ("chaotic", lambda: normalised(50)),  # grows by 1.21 a layer (Yang et al. 2019)
    "default nn.Linear, shallow": ("stable", lambda: default(3)),
    "default nn.Linear, deep": ("vanishing", lambda: default(20)),
}


@SEEDS
@pytest.mark.parametrize("name", MODELS)
def test_users_models_of_known_phase_get_their_verdict(name, seeds, at_least):
    """Models of torch.nn's parts: 5 of 5 seeds, 19 of 20 agree with theory."""
    kind, build = MODELS[name]
    agree = 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, x, y = build(), torch.randn(32, 32), torch.randint(10, (32,))
        agree += gradient_flow(model, x, y).verdict.kind == kind
    assert agree >= at_least


# --- by hand ---------------------------------------------------------------------------------------------------------


def frame(log_squares: list[float], activations: list[float] | None = None) -> pd.DataFrame:
    layers = len(log_squares)
    return pd.DataFrame({"layer": range(1, layers + 1), "zero_fraction": 0.0,
                         "activation_mean_square": activations or [1.0] * layers,
                         "log10_error_signal_norm": np.array(log_squares) / (2 * math.log(10))})


def test_layer_is_where_six_depth_scales_are_passed():
    """Two e-folds a layer, ten layers: the fourth layer from the end is 6 away and not yet past, the fifth is."""
    verdict = verdict_of(frame([-2.0 * i for i in range(9, -1, -1)]))
    assert (verdict.kind, verdict.layer) == ("vanishing", 6)
    assert verdict.factor == pytest.approx(math.exp(-1)) and verdict.factor_error == pytest.approx(0, abs=1e-12)
    assert verdict.decades == pytest.approx(-18 / (2 * math.log(10)))
    assert verdict.sentence.startswith("vanishing: from layer 6 to the input")


def test_threshold_is_six_e_folds_on_either_side():
    for above, kind in ((-2 * THRESHOLD - 0.01, "vanishing"), (-2 * THRESHOLD + 0.01, "stable"), (0.01, "chaotic")):
        change = THRESHOLD + above
        assert verdict_of(frame([change, change / 2, 0.0])).kind == kind


def test_growth_that_activations_share_is_explosion_and_growth_that_they_do_not_is_chaos():
    """chi over q' / q, the slope of the correlation map at 1: above 1 nearby inputs part."""
    back = [8.0, 4.0, 0.0]
    assert verdict_of(frame(back, [1.0, math.exp(4), math.exp(8)])).kind == "exploding"
    assert verdict_of(frame(back, [1.0, 1.0, 1.0])).kind == "chaotic"


def test_layers_that_the_loss_does_not_see_are_passed_over():
    """nan rows (off the path) change nothing; all nan is dead: the loss depends on no layer."""
    nan = math.nan
    assert verdict_of(frame([nan, -20.0, nan, 0.0])).layer == 2
    assert verdict_of(frame([nan, nan])).kind == "dead"
    assert verdict_of(frame([-math.inf, -math.inf, 0.0])).layer == 2


def test_a_diverged_net_is_named_with_its_first_bad_layer():
    verdict = verdict_of(frame([math.nan] * 3, [1.0, math.inf, math.nan]))
    assert (verdict.kind, verdict.layer) == ("exploding", 2)
    assert "layer 2 are not finite" in verdict.sentence


def test_one_bad_layer_is_found():
    """A drop by e^-20 at one layer, flat elsewhere: vanishing from just there."""
    assert verdict_of(frame([-20.0] * 4 + [0.0] * 6)).layer == 4


# --- for users' own tests, and side by side --------------------------------------------------------------------------


@pytest.mark.slow
def test_assert_trainable_passes_or_raises_the_verdict():
    """Raised with the sentence and what helps; an AssertionError, as test runners expect."""
    x, y = torch.randn(9, 32, generator=torch.Generator().manual_seed(0)), torch.arange(9)
    good = fs.initialize(fs.PlainNet(32, 64, 10), "he_normal")
    assert fs.assert_trainable(good, x, y).verdict.kind == "trains"
    bad = fs.initialize(fs.PlainNet(32, 64, 40), "glorot_normal")
    with pytest.raises(AssertionError, match=r"^assert_trainable: (does not train|cannot tell)\.") as caught:
        fs.assert_trainable(bad, x, y)
    assert caught.value.verdict.cause.startswith("Cause: vanishing gradients")
    assert ADVICE["vanishing"] in str(caught.value)


def test_compare_is_each_model_alone():
    """One frame, a block per model in the order given; verdicts by name; one picture."""
    x, y = torch.randn(9, 32, generator=torch.Generator().manual_seed(0)), torch.arange(9)
    models = {"plain": fs.initialize(fs.PlainNet(32, 30, 40), "glorot_normal"),
              "highway": fs.initialize(fs.HighwayNet(32, 30, 40, gate_bias=-4.0), "glorot_normal")}
    both = fs.compare(models, x, y)
    assert both.frame["model"].unique().tolist() == ["plain", "highway"]
    for name, model in models.items():
        alone = gradient_flow(model, x, y)
        block = both.frame[both.frame["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(block, alone.frame, check_exact=True)
        assert str(both.verdicts[name]) == str(alone.verdict)
    assert len(both.plot().axes) == 4


@pytest.mark.usefixtures("annotations_unchecked")
def test_compare_wants_names():
    with pytest.raises(TypeError, match=r"^compare: `models` must be a mapping .* got list\. Pass \{'plain'"):
        fs.compare([nn.Linear(2, 2)], torch.ones(1, 2))
