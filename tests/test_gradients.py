"""Gradient flow: equal to a slow twin, free of underflow, harmless to the model, and with the known slopes."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES, NETS, Awkward, assert_same, batch, build, fingerprint
from slow_flow import statistics
from torch import Tensor, nn

from flowstudy.measure import gradient_flow, stacked_gradient_flow
from flowstudy.measure.gradients.statistics import STATISTICS
from flowstudy.nets import HighwayBlock, PlainNet, ResidualBlock, initialize
from flowstudy.train import stack

NORMS = ["log10_weight_gradient_norm", "log10_error_signal_norm"]
RELATIVE = 1e-12  # float64 against float64 in another order: some hundred roundings of 1e-16, with room


def assert_same_flow(one: pd.DataFrame, other: pd.DataFrame, relative: float = RELATIVE) -> None:
    """Norms agree to the given relative error, which is an absolute one of their logarithms; nan where nan."""
    for name in NORMS:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=relative / math.log(10), err_msg=name)
    for name in STATISTICS[2:]:
        np.testing.assert_allclose(one[name], other[name], rtol=relative, atol=10 * relative, err_msg=name)


# --- what it measures ------------------------------------------------------------------------------------------------

FORMULAS = {"relu": lambda h: h.clamp(min=0), "tanh": torch.tanh, "sigmoid": lambda h: 1 / (1 + torch.exp(-h)),
            "linear": lambda h: h}


def slow_twin(net: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """The same numbers by separate H and T matrices, retained outputs, and one autograd call per layer, in float64."""
    def leaves(affine: nn.Linear, parts: int) -> list[tuple[Tensor, Tensor]]:
        w, b = affine.weight.detach().double(), affine.bias.detach().double()
        return [(w.clone().requires_grad_(), b) for w, b in zip(w.chunk(parts), b.chunk(parts), strict=True)]

    phi, h, rows = FORMULAS[net.activation], x.double(), []
    for layer in [net.input, *net.blocks]:
        if isinstance(layer, HighwayBlock):
            (w_h, b_h), (w_t, b_t) = leaves(layer.affine, 2)
            gate = 1 / (1 + torch.exp(-(h @ w_t.T + b_t)))
            h = phi(h @ w_h.T + b_h) * gate + h * (1 - gate)
            rows.append((h, [w_h, w_t]))
        else:
            [(w, b)] = leaves(layer.affine, 1)
            h = phi(h @ w.T + b) + (h if isinstance(layer, ResidualBlock) else 0)
            rows.append((h, [w]))
    [(w, b)] = leaves(net.readout, 1)
    logits = h @ w.T + b
    loss = (logits.exp().sum(1).log() - logits[torch.arange(len(y)), y]).mean()
    return statistics(loss, rows)


@pytest.mark.parametrize("name", NETS)
def test_equal_to_a_slow_twin(name):
    """Every statistic of every layer is the twin's; layers are numbered 1..depth from the input."""
    net, (x, y) = build(name, scheme="glorot_normal"), batch()  # He's residual nets saturate the softmax: 1 - p is lost
    frame = gradient_flow(net, x, y).frame
    assert frame["layer"].tolist() == list(range(1, net.depth + 1))
    assert_same_flow(frame, slow_twin(net, x, y))


@pytest.mark.parametrize("loss, function", [
    ("mse", nn.functional.mse_loss), (lambda output, y: (output - y).abs().sum(), lambda o, y: (o - y).abs().sum())],
    ids=["mse", "own"])
def test_other_losses_are_differentiated_as_they_are(loss, function):
    """With any loss, a layer's norms are those of plain autograd on a float64 copy."""
    net, (x, _) = build("PlainNet-tanh-L9"), batch()
    y = torch.randn(len(x), CLASSES, generator=torch.Generator().manual_seed(2))
    frame = gradient_flow(net, x, y, loss=loss).frame
    twin = copy.deepcopy(net).double()
    function(twin(x.double()), y.double()).backward()
    norms = [layer.affine.weight.grad.norm().log10().item() for layer in twin.hidden_layers]
    np.testing.assert_allclose(frame[NORMS[0]], norms, rtol=0, atol=RELATIVE)


def test_without_labels_a_random_readout_takes_the_losss_place():
    """y = None: a fixed linear function of the outputs, so a linear net's error signals do not depend on the input."""
    net = initialize(PlainNet(FEATURES, 7, 5, CLASSES, "linear"), "he_normal")
    x, _ = batch()
    one, other = (gradient_flow(net, inputs).frame[NORMS[1]] for inputs in (x, 3 * x + 1))
    np.testing.assert_allclose(one, other, rtol=0, atol=RELATIVE)


def test_samples_are_the_first_ones():
    """`samples=n` measures the first n samples and no others."""
    net, (x, y) = build("PlainNet-tanh-L9"), batch()
    assert_same_flow(gradient_flow(net, x, y, samples=4).frame, gradient_flow(net, x[:4], y[:4]).frame, relative=0)


def test_same_numbers_on_every_device(device):
    """The measurement does not depend on the device beyond rounding."""
    net, (x, y) = build("HighwayNet-tanh-L9"), batch()
    here = gradient_flow(net, x, y).frame
    assert_same_flow(gradient_flow(net.to(device), x.to(device), y.to(device)).frame, here)


# --- any module ------------------------------------------------------------------------------------------------------


def test_a_single_layer_is_a_model():
    """A bare nn.Linear is its own layer: error signal softmax - onehot over n, weight gradient by hand."""
    layer, (x, y) = nn.Linear(FEATURES, CLASSES).double(), batch()
    error = (torch.softmax(layer(x.double()), 1) - nn.functional.one_hot(y, CLASSES)).detach() / len(x)
    row = gradient_flow(layer, x, y).frame.iloc[0]
    assert row[NORMS[1]] == pytest.approx(math.log10(error.norm()), abs=RELATIVE)
    assert row[NORMS[0]] == pytest.approx(math.log10((error.T @ x.double()).norm()), abs=RELATIVE)


def test_in_place_activation_changes_nothing():
    """nn.ReLU(inplace=True) gives the numbers of nn.ReLU(), those of the layer before it included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    in_place = copy.deepcopy(model)
    in_place[1].inplace = in_place[3].inplace = True
    x, y = batch()
    assert_same_flow(gradient_flow(in_place, x, y).frame, gradient_flow(model, x, y).frame, relative=0)


def test_convolutions_are_layers_like_others():
    """Any number of axes: norms run over samples, channels and pixels alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3), nn.Flatten(),
                          nn.Linear(2 * 1 * 2, CLASSES)).double()
    x, y = batch()
    frame = gradient_flow(model, x.view(-1, 1, 3, 4), y).frame
    assert frame["module"].tolist() == ["0", "2", "4"]
    nn.functional.cross_entropy(model(x.double().view(-1, 1, 3, 4)), y).backward()
    norms = [model[i].weight.grad.norm().log10().item() for i in (0, 2, 4)]
    np.testing.assert_allclose(frame[NORMS[0]], norms, rtol=0, atol=RELATIVE)


class Paths(nn.Module):
    """A layer used twice, a weight shared by two layers, a layer the loss does not see, a layer never called."""

    def __init__(self):
        super().__init__()
        self.twice, self.tied, self.unseen, self.unused = (nn.Linear(FEATURES, FEATURES) for _ in range(4))
        self.tied.weight = self.twice.weight
        self.readout = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.readout(torch.tanh(self.tied(h)) + self.unseen(h).detach())


def test_a_row_per_use_and_none_for_what_is_not_used():
    """Each use is a row with its weight's whole gradient, if tied too; unseen by the loss is nan; unused is absent."""
    torch.manual_seed(0)
    model, (x, y) = Paths().double(), batch()
    frame = gradient_flow(model, x, y).frame.set_index("layer")
    assert frame["module"].tolist() == ["twice", "twice", "tied", "unseen", "readout"]
    nn.functional.cross_entropy(model(x.double()), y).backward()
    expected = math.log10(model.twice.weight.grad.norm())
    for layer in (1, 2, 3):
        assert frame.loc[layer, NORMS[0]] == pytest.approx(expected, abs=RELATIVE)
    assert frame.loc[1, NORMS[1]] != frame.loc[2, NORMS[1]]
    assert frame.loc[4, NORMS].isna().all() and math.isfinite(frame.loc[4, "activation_mean"])


def test_frozen_layers_keep_their_rows_and_have_no_gradient():
    """As autograd says None; the error signal goes through them, and no other number changes."""
    net, (x, y) = build("PlainNet-tanh-L9"), batch()
    free = gradient_flow(net, x, y).frame
    net.blocks.requires_grad_(False)
    frozen = gradient_flow(net, x, y).frame
    assert frozen["gradient"].tolist() == ["value"] + ["none"] * 8 and (free["gradient"] == "value").all()
    assert frozen["trainable"].tolist() == [True] + [False] * 8 and free["trainable"].all()
    lost = ["log10_weight_gradient_norm", "gradient_zero_fraction", "gradient_subnormal_fraction", "gradient",
            "trainable"]
    assert frozen[lost[:3]][1:].isna().all(axis=None)
    pd.testing.assert_frame_equal(frozen.drop(columns=lost), free.drop(columns=lost))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    """Parameters, gradients, frozen flags, modes, running statistics, hooks and the global random states stay."""
    torch.manual_seed(0)
    model, (x, y) = Awkward().train(training), batch()
    before = fingerprint(model), x.clone()
    gradient_flow(model, x, y)
    assert_same(before, (fingerprint(model), x))
    assert x.grad is None


# --- extremes --------------------------------------------------------------------------------------------------------


def test_finite_where_float32_is_exactly_zero():
    """100 sigmoid layers: the first layer's gradient is exactly 0 in float32; measured, it is the float64 twin's."""
    net, (x, y) = initialize(PlainNet(FEATURES, 20, 100, CLASSES, "sigmoid"), "glorot_normal"), batch()
    frame = gradient_flow(net, x, y).frame
    assert_same_flow(frame, slow_twin(net, x, y), relative=1e-11)  # 100 layers: some more roundings
    nn.functional.cross_entropy(net(x), y).backward()
    assert not net.input.affine.weight.grad.any()
    assert -100 < frame[NORMS[0]][0] < -45  # 1e-45 is float32's smallest number


def test_norms_have_no_floor_at_the_square_root_of_the_smallest_number():
    """A linear net of weights c Q, Q orthogonal, loses exactly log10 c a layer, down to 1e-295 where squares are 0."""
    depth, c = 60, 1e-5
    net = initialize(PlainNet(FEATURES, 8, depth, CLASSES, "linear").double(), "orthogonal", gain=c)
    x, y = batch()
    flow = gradient_flow(net, x, y)
    error = flow.frame[NORMS[1]]
    lost = math.log10(c) * np.arange(depth - 1, -1, -1)
    np.testing.assert_allclose(error - error[depth - 1], lost, rtol=0, atol=1e-10)
    assert error[0] < -295
    assert flow.slope == pytest.approx(2 * math.log(c), abs=1e-10)


def test_dead_net_is_exactly_zero():
    """All ReLUs off: every weight gradient, and every error signal but the last layer's, is log10 0 = -inf, not nan."""
    net, (x, y) = build("PlainNet-relu-L9"), batch()
    with torch.no_grad():
        net.input.affine.bias.fill_(-1e6)
    flow = gradient_flow(net, x, y)
    assert (flow.frame[NORMS[0]] == -math.inf).all()
    assert (flow.frame[NORMS[1]][:-1] == -math.inf).all() and math.isfinite(flow.frame[NORMS[1]].iloc[-1])
    assert (flow.frame["zero_fraction"] == 1).all()
    assert math.isnan(flow.slope)


def test_diverged_net_gives_nan():
    """A net whose weights are nan is measured, not refused: its rows are nan."""
    net, (x, y) = build("HighwayNet-tanh-L9"), batch()
    with torch.no_grad():
        net.input.affine.weight.fill_(torch.nan)
    flow = gradient_flow(net, x, y)
    assert flow.frame[list(STATISTICS[:4])].isna().all(axis=None)
    assert math.isnan(flow.slope)


# --- stacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_stack_is_measured_as_each_net_alone(name):
    """Row i of a stack is `gradient_flow` of net i."""
    nets, (x, y) = [build(name, seed) for seed in range(3)], batch()
    many = stack(nets)
    measured = stacked_gradient_flow(many.template, many.state, x, y)
    for i, net in enumerate(nets):
        assert_same_flow(pd.DataFrame({key: measured[key][i].numpy() for key in STATISTICS}),
                         gradient_flow(net, x, y).frame)


def test_nan_net_leaves_its_neighbours_as_they_were():
    """A diverged net in the stack: nan for itself, its neighbours' numbers equal to the last bit."""
    many, (x, y) = stack([build("PlainNet-relu-L9", seed) for seed in range(4)]), batch()
    tame = stacked_gradient_flow(many.template, many.state, x, y)
    for value in many.state.values():
        value[1] = torch.nan
    wild = stacked_gradient_flow(many.template, many.state, x, y)
    for name in STATISTICS:
        assert torch.equal(wild[name][[0, 2, 3]], tame[name][[0, 2, 3]])
    for name in NORMS:
        assert wild[name][1].isnan().all()


# --- errors ----------------------------------------------------------------------------------------------------------


def wrong(**change: object) -> dict[str, object]:
    x, y = batch()
    return {"model": build("PlainNet-tanh-L2"), "x": x, "y": y} | change


class Two(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


ERRORS = {
    "function": (TypeError, lambda: wrong(model=torch.tanh), r"`model` must be an nn\.Module, got builtin"),
    "no weights": (ValueError, lambda: wrong(model=nn.ReLU()), r"`model` must have layers with weights, got ReLU"),
    "two outputs": (ValueError, lambda: wrong(model=Two(FEATURES, CLASSES)), r"`model` must return one tensor, got"),
    "array": (TypeError, lambda: wrong(x=np.ones((9, FEATURES))), r"`x` must be a tensor of inputs, got ndarray\. Use"),
    "one sample": (ValueError, lambda: wrong(x=torch.ones(FEATURES)), r"`x` must be a batch .* x\.unsqueeze\(0\)"),
    "empty": (ValueError, lambda: wrong(x=torch.ones(0, FEATURES)), r"`x` must be a batch of at least one sample"),
    "nan": (ValueError, lambda: wrong(x=torch.full((9, FEATURES), torch.nan)), r"`x` must be finite, got 108 NaN"),
    "features": (ValueError, lambda: wrong(x=torch.ones(9, 3)), r"`x` must have 12 features in its last axis, got"),
    "samples": (ValueError, lambda: wrong(samples=10), r"`samples` must be between 1 and the batch's 9, got 10"),
    "loss": (ValueError, lambda: wrong(loss="hinge"), r"`loss` must be one of cross_entropy, mse, output or a .*hinge"),
    "few labels": (ValueError, lambda: wrong(y=torch.zeros(4).long()), r"`y` must have one label .* 4 labels for 9"),
    "labels beyond": (ValueError, lambda: wrong(y=torch.full((9,), 5)), r"`y` must hold labels from 0 to 4"),
    "list of labels": (TypeError, lambda: wrong(y=[0] * 9), r"`y` must be a tensor of targets, got list\. Use torch"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_errors_say_what_to_do(case):
    """Bad input gets one readable line that names the argument and the rule."""
    kind, arguments, message = ERRORS[case]
    with pytest.raises(kind, match=f"^gradient_flow: {message}") as caught:
        gradient_flow(**arguments())
    assert "\n" not in str(caught.value)
