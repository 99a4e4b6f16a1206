"""Transform gates: activity equal to a slow twin's, lesions equal to removing the layer."""

import copy
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES, SAMPLES, assert_same, batch, build, fingerprint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from flowstudy.measure import gate_activity, gradient_flow, jacobian_spectrum, lesion
from flowstudy.nets import HighwayBlock, HighwayNet, PlainNet
from flowstudy.train import stack

DEEP = "HighwayNet-tanh-L9"
ROUNDING = {"rtol": 0, "atol": 1e-14}  # means of numbers in [0, 1]: some tens of roundings of 1e-16


class Mixed(nn.Module):
    """What a user's model may be: convolutional and fully connected blocks, dropout, batch norm, weights of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), HighwayBlock(nn.Conv2d(2, 4, 3, padding=1), "relu"),
                                  nn.Dropout(0.3), HighwayBlock(nn.Conv2d(2, 4, 1)), nn.Flatten(),
                                  nn.BatchNorm1d(2 * FEATURES))
        self.top = HighwayBlock(nn.Linear(2 * FEATURES, 4 * FEATURES), gate_bias=-0.5)
        self.readout = nn.Linear(2 * FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.top(self.scale * self.body(x.view(-1, 1, 3, FEATURES // 3))))


class Twice(nn.Module):
    """A block that runs twice."""

    def __init__(self):
        super().__init__()
        self.block = HighwayBlock(nn.Linear(FEATURES, 2 * FEATURES))
        self.readout = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.block(self.block(x)))


def separate(block: HighwayBlock) -> tuple[nn.Module, nn.Module]:
    """H's and T's affine maps in float64, as two ordinary modules."""
    parts = copy.deepcopy(block.affine).double(), copy.deepcopy(block.affine).double()
    for part, rows in zip(parts, (slice(None, len(block.gate_bias)), slice(len(block.gate_bias), None)), strict=True):
        part.weight, part.bias = nn.Parameter(part.weight[rows]), nn.Parameter(part.bias[rows])
    return parts


def slow_gates(net: HighwayNet, x: Tensor) -> Tensor:
    """T of each input, (layer, sample, unit), by y = H T + x (1 - T) with two matrices a layer."""
    h, gates = torch.tanh(copy.deepcopy(net.input.affine).double()(x.double())), []
    for block in net.blocks:
        w_h, w_t = separate(block)
        t = torch.sigmoid(w_t(h))
        h = torch.tanh(w_h(h)) * t + h * (1 - t)
        gates.append(t)
    return torch.stack(gates).detach()


def table(frame, values: str = "activity") -> Tensor:
    return torch.tensor(frame.pivot(index="layer", columns="unit", values=values).to_numpy())


# --- activity --------------------------------------------------------------------------------------------------------


def test_activity_is_the_slow_twins():
    """Overall, per class, per input: means of T computed by separate W_H and W_T; layers 2..depth."""
    net, (x, y) = build(DEEP), batch()
    slow, gates = slow_gates(net, x), gate_activity(net, x, y)
    assert gates.frame["layer"].unique().tolist() == list(range(2, 10))
    assert_close(table(gates.frame), slow.mean(1), **ROUNDING)
    assert gates.by_class["class"].unique().tolist() == y.unique().tolist()
    for label, rows in gates.by_class.groupby("class"):
        assert_close(table(rows), slow[:, y == label].mean(1), **ROUNDING)
        assert_close(table(rows, "difference"), slow[:, y == label].mean(1) - slow.mean(1), **ROUNDING)
    alone = gate_activity(net, x, torch.arange(len(x))).by_class
    for i, rows in alone.groupby("class"):
        assert_close(table(rows), slow[:, i], **ROUNDING)
        assert_close(table(gate_activity(net, x[i:i + 1]).frame), slow[:, i], **ROUNDING)


def test_activity_of_zero_weights_is_the_bias():
    """W_T = 0: T = sigmoid(b_T) for any input, exactly (a mean over 8 inputs of one number is that number)."""
    net, (x, y) = build(DEEP), batch(8)
    for i, block in enumerate(net.blocks):
        nn.init.zeros_(block.affine.weight)
        block.set_gate_bias(torch.linspace(-9, 1, net.width) + i)
    frame = gate_activity(net, x, y).frame
    biases = torch.stack(net.gate_biases).double().detach()
    assert torch.equal(table(frame, "gate_bias"), biases)
    assert torch.equal(table(frame), torch.sigmoid(biases))


def test_class_means_average_to_the_overall_mean():
    """Weighted by the classes' sizes; so the differences average to 0."""
    x, y = batch()
    gates = gate_activity(Mixed(), x, y)
    weight = gates.by_class["class"].map(dict(zip(*np.unique(y, return_counts=True), strict=True))) / len(y)
    for column, expected in (("activity", gates.frame["activity"]), ("difference", 0)):
        mean = (gates.by_class[column] * weight).groupby([gates.by_class["layer"], gates.by_class["unit"]]).sum()
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-14)


def test_many_inputs_are_their_parts(monkeypatch):
    """However many run at once, the answer is the same."""
    net, (x, y) = Mixed(), batch(50)
    whole = gate_activity(net, x, y)
    monkeypatch.setattr("flowstudy.measure.gates.activity.CHUNK", 7)
    parts = gate_activity(net, x, y)
    assert_close(torch.tensor(parts.frame["activity"]), torch.tensor(whole.frame["activity"]), **ROUNDING)
    assert_close(torch.tensor(parts.by_class["activity"]), torch.tensor(whole.by_class["activity"]), **ROUNDING)


def test_any_model_is_measured_as_gradient_flow_counts():
    """Convolutional blocks by channel; layer numbers are gradient_flow's; eval mode, as dropout has no part in it."""
    torch.manual_seed(0)
    net, (x, y) = Mixed(), batch()
    frame = gate_activity(net, x).frame
    assert frame.groupby("module", sort=False)["unit"].count().to_dict() == {"body.1": 2, "body.3": 2,
                                                                              "top": 2 * FEATURES}
    flow = gradient_flow(net, x, y).frame.set_index("module")["layer"]
    numbers = frame.groupby("module")["layer"].first()
    assert numbers.to_dict() == {name: flow[f"{name}.affine"] for name in numbers.index}

    slow = copy.deepcopy(net).double().eval()
    h = slow.body[0](x.double().view(-1, 1, 3, FEATURES // 3))
    t = torch.sigmoid(separate(net.body[1])[1](h)).mean((0, 2, 3))
    assert_close(torch.tensor(frame["activity"][frame["module"] == "body.1"].to_numpy()), t.detach(), **ROUNDING)


def test_a_block_used_twice_has_rows_for_each_use():
    """The second use is that of a net in which a copy of the block stands there."""
    net, (x, _) = Twice(), batch()
    frame = gate_activity(net, x).frame
    chain = nn.Sequential(net.block, copy.deepcopy(net.block), net.readout)
    assert frame["layer"].unique().tolist() == [1, 2] and (frame["module"] == "block").all()
    assert_close(table(frame), table(gate_activity(chain, x).frame), rtol=0, atol=0)


def test_diverged_net_gives_nan():
    """A net whose weights are nan is measured, not refused."""
    net, (x, y) = build(DEEP), batch()
    nn.init.constant_(net.blocks[0].affine.weight, torch.nan)
    assert gate_activity(net, x, y).frame["activity"].isna().all()


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_model_as_it_was(training):
    """Parameters, gradients, modes, running statistics, hooks and the global random states stay."""
    model, (x, y) = Mixed().train(training), batch()
    before = fingerprint(model), x.clone()
    gate_activity(model, x, y)
    assert_same(before, (fingerprint(model), x))


def test_activity_is_the_same_on_every_device(device):
    """Float64 on the CPU and on CUDA differ by roundings only."""
    net, (x, y) = build(DEEP), batch()
    here = gate_activity(net, x, y)
    there = gate_activity(net.to(device), x.to(device), y.to(device))
    assert_close(table(there.frame), table(here.frame), rtol=0, atol=1e-12)
    assert_close(torch.tensor(there.by_class["activity"]), torch.tensor(here.by_class["activity"]), rtol=0, atol=1e-12)


# --- lesions ---------------------------------------------------------------------------------------------------------


def without(net: HighwayNet, layers: list[int]) -> HighwayNet:
    shorter = copy.deepcopy(net)
    shorter.blocks = nn.Sequential(*(b for i, b in enumerate(shorter.blocks, 2) if i not in layers))
    return shorter


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", [2, 9, [3, 4, 7], (5, 5), range(2, 10), []], ids=str)
def test_a_lesioned_layer_is_a_removed_layer(layers, training):
    """Outputs and gradients, in all other layers and at the input, are the shorter net's, bit for bit."""
    net, (x, y) = build(DEEP).train(training), batch()
    numbers = [layers] if isinstance(layers, int) else layers
    found = []
    for model, context in ((net, lesion(net, layers)), (without(net, numbers), nullcontext())):
        inputs = x.clone().requires_grad_()
        with context:
            output = model(inputs)
            F.cross_entropy(output, y).backward()
            with torch.no_grad():
                assert torch.equal(model(x), output)
        found.append([output.detach(), inputs.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert_same(*found)
    for number in numbers:
        assert all(p.grad is None for p in net.hidden_layers[number - 1].parameters())


def test_a_lesion_copies_every_bit():
    """Whatever the block would compute: zeros of either sign, infinities, and the nan of a diverged layer."""
    net = build(DEEP)
    nn.init.constant_(net.blocks[3].affine.weight, torch.nan)
    h = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf, 1e-45, 3e38]).repeat(2)[:net.width]
    with lesion(net, 5):
        assert torch.equal(net.blocks[3](h).view(torch.int32), h.view(torch.int32))
        assert torch.equal(net.blocks[3](x=h).view(torch.int32), h.view(torch.int32))


class InPlace(nn.Module):
    """What follows the block works in the memory that it gets, and the block's input is used again."""

    def __init__(self):
        super().__init__()
        self.block = HighwayBlock(nn.Linear(FEATURES, 2 * FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x).relu_()


def test_a_lesioned_layers_copy_is_a_copy():
    """Whoever changes the layer's output in place leaves its input alone: x + relu(x), and x as it was."""
    x = batch()[0]
    given, net = x.clone(), InPlace()
    with torch.no_grad(), lesion(net, 1):
        assert torch.equal(net(given), x + x.relu())
    assert torch.equal(given, x)


def test_a_forward_pass_that_fails_is_over():
    """Layers that are called by themselves are in no order, also after a pass that ended with an error half-way."""
    net, (x, _) = build(DEEP), batch()
    with lesion(net, 3):
        expected = net(x)
        with pytest.raises(RuntimeError):
            net(x[:, 1:])
        h = torch.ones(2, net.width)
        assert torch.equal(net.blocks[1](h), h) and not torch.equal(net.blocks[4](h), h)
        assert torch.equal(net(x), expected)


def test_every_layer_in_one_stacked_pass():
    """A net of a stack whose gate bias is -inf in one layer is the lesioned net: how all lesions run at once."""
    net, (x, _) = build(DEEP), batch()
    shorter = without(net, [2, 5])
    many = stack([net] * len(net.blocks))
    for i in range(len(net.blocks)):
        many.state[f"blocks.{i}.affine.bias"][i, net.width:] = -torch.inf
    for i, output in enumerate(many(x)):
        with lesion(net, i + 2):
            assert_close(output, net(x), rtol=1e-5, atol=1e-6)  # float32, summed in another order
    with lesion(many.template, 5):
        assert_close(many(x)[0], shorter(x), rtol=1e-5, atol=1e-6)


def test_measurements_see_the_lesion():
    """A lesion holds for the copies that measurements work on: Jacobians and gradients are the shorter net's."""
    net, (x, y) = build(DEEP), batch()
    shorter = without(net, [4])
    with lesion(net, 4):
        spectrum, flow = jacobian_spectrum(net, x), gradient_flow(net, x, y)
    assert_close(spectrum.log_singular_values, jacobian_spectrum(shorter, x).log_singular_values)
    expected = gradient_flow(shorter, x, y).frame["log10_error_signal_norm"].to_numpy()
    np.testing.assert_allclose(flow.frame["log10_error_signal_norm"].drop(index=3), expected)


def test_lesions_nest_and_end():
    """Inside: the union. Afterwards, and after an exception: the model as it was, bit for bit."""
    net, (x, _) = build(DEEP), batch()
    before, intact, shorter = fingerprint(net), net(x), without(net, [2, 3, 8])
    with lesion(net, [2, 3]), lesion(net, [3, 8]):
        assert torch.equal(net(x), shorter(x))
    with pytest.raises(ZeroDivisionError), lesion(net, 3):
        raise ZeroDivisionError
    assert_same(before, fingerprint(net))
    assert torch.equal(net(x), intact)


def test_any_models_layers_are_lesioned_by_gate_activitys_numbers():
    """Convolutional and fully connected blocks, in training mode: the lesioned block's module could be nn.Identity."""
    net, (x, _) = Mixed(), batch()
    numbers = gate_activity(net, x).frame.groupby("module")["layer"].first()
    for name, number in numbers.items():
        removed = copy.deepcopy(net)
        removed.set_submodule(name, nn.Identity())
        outputs = []
        for model in (net, removed):
            torch.manual_seed(0)  # dropout
            with lesion(net, int(number)):
                outputs.append(model(x))
        assert torch.equal(*outputs)


# --- errors ----------------------------------------------------------------------------------------------------------


class Backwards(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](self[1](x))


class Sometimes(HighwayNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.readout(self.input(x))


def blocks(count: int) -> list[HighwayBlock]:
    return [HighwayBlock(nn.Linear(FEATURES, 2 * FEATURES)) for _ in range(count)]


class Doubled(HighwayBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Named(HighwayBlock):
    """A subclass that runs as its parent does."""


def test_a_subclass_that_runs_as_highway_block_is_one():
    """Its activity, its lesion and its hooks' effect are the parent's; the paper's net is a HighwayNet of them."""
    net, (x, _) = build("HighwayNet-tanh-L9"), batch()
    expected = gate_activity(net, x).frame
    for block in net.blocks:
        block.__class__ = Named
        block.register_forward_hook(lambda _module, _args, output: output)
    pd.testing.assert_frame_equal(gate_activity(net, x).frame, expected)
    with lesion(net, 3):
        h = net.blocks[0](net.input(x))
        assert torch.equal(net.blocks[1](h), h)


PART = torch.ones(600, FEATURES) * (torch.arange(600) < 512)[:, None]  # the second chunk of inputs is all zeros

ACTIVITY_ERRORS = {
    "function": (TypeError, lambda: torch.tanh, {}, r"`model` must be an nn\.Module, got builtin"),
    "plain": (ValueError, lambda: PlainNet(FEATURES), {},
              r"`model` must have a HighwayBlock among its layers, got PlainNet"),
    "no weights": (ValueError, nn.ReLU, {}, r"`model` must have layers with weights, got ReLU"),
    "sometimes": (ValueError, lambda: Sometimes(FEATURES), {"x": PART, "y": None},
                  r"`model` must run the same gates whatever the input, at least one, got Sometimes"),
    "never": (ValueError, lambda: Sometimes(FEATURES), {"x": torch.zeros(SAMPLES, FEATURES)},
              r"`model` must run the same gates whatever the input, at least one, got Sometimes"),
    "own forward": (ValueError, lambda: nn.Sequential(*blocks(1), Doubled(nn.Linear(FEATURES, 2 * FEATURES))), {},
                    r"`model` must have blocks that run as HighwayBlock does, got '1', a Doubled with a forward of"),
    "empty": (ValueError, lambda: HighwayNet(FEATURES), {"x": torch.ones(0, FEATURES)}, r"`x` must be a batch of at"),
    "features": (ValueError, lambda: HighwayNet(FEATURES), {"x": torch.ones(9, 3)}, r"`x` must have 12 features"),
    "list": (TypeError, lambda: HighwayNet(FEATURES), {"y": [0] * 9}, r"`y` must be a tensor of labels, got list\."),
    "few": (ValueError, lambda: HighwayNet(FEATURES), {"y": torch.zeros(4).long()},
            r"`y` must be one integer label per sample, shape \(9,\), got torch.int64 of shape \(4,\)"),
    "float": (ValueError, lambda: HighwayNet(FEATURES), {"y": torch.zeros(9)}, r"`y` must .*, got torch.float32 of"),
}


@pytest.mark.parametrize("case", ACTIVITY_ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_activity_errors_say_what_to_do(case):
    """Bad input gets one readable line that names the argument and the rule."""
    kind, model, change, message = ACTIVITY_ERRORS[case]
    x, y = batch()
    with pytest.raises(kind, match=f"^gate_activity: {message}") as caught:
        gate_activity(model(), **{"x": x, "y": y} | change)
    assert "\n" not in str(caught.value)


LESION_ERRORS = {
    "function": (TypeError, lambda: torch.tanh, 2, r"`model` must be an nn\.Module, got builtin"),
    "plain net": (ValueError, lambda: PlainNet(FEATURES), 2,
                  r"`model` must have a HighwayBlock among its layers, got PlainNet"),
    "plain layer": (ValueError, lambda: HighwayNet(FEATURES, depth=5), 1,
                    r"`layers` must be numbers of highway layers, got 1, a PlainBlock, which has no gate\. "
                    r"This model's are 2 to 5\."),
    "zero": (ValueError, lambda: HighwayNet(FEATURES, depth=3), 0, r"`layers` .*, got 0\. This model's are 2, 3\."),
    "beyond": (ValueError, lambda: HighwayNet(FEATURES, depth=5), [2, 6], r"`layers` .*, got 6\. This .* 2 to 5\."),
    "float": (TypeError, lambda: HighwayNet(FEATURES), 2.0, r"`layers` must be a layer's .*, got 2\.0"),
    "name": (TypeError, lambda: HighwayNet(FEATURES), ["blocks.0"], r"`layers` must be a .*, got \['blocks.0'\]"),
    "own forward": (ValueError, lambda: nn.Sequential(*blocks(1), Doubled(nn.Linear(FEATURES, 2 * FEATURES))), 1,
                    r"`model` must have blocks that run as HighwayBlock does, got '1', a Doubled with a forward of"),
    "compiled": (ValueError, lambda: torch.compile(HighwayNet(FEATURES)), 2, r"`model` must not be compiled"),
    "backwards": (ValueError, lambda: Backwards(*blocks(2)), 2,
                  r"`model` must run its layers in the order in which it holds them, .*, got layer 2 in place 1\. Let"),
    "twice": (ValueError, Twice, 1, r"`model` must run its layers .*, once each, got layer 1 in place 2\. Let"),
}


@pytest.mark.parametrize("case", LESION_ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_lesion_errors_say_what_to_do(case):
    """A layer that cannot be lesioned is refused, in one line, before or instead of a wrong result; nothing stays."""
    kind, build_model, layers, message = LESION_ERRORS[case]
    model = build_model()
    with pytest.raises(kind, match=f"^lesion: {message}") as caught, lesion(model, layers):
        model(batch()[0])
    assert "\n" not in str(caught.value)
    assert not isinstance(model, nn.Module) or not any(m._forward_hooks for m in model.modules())
