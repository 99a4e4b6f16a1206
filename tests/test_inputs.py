"""Inputs, targets and outputs of any structure: the numbers do not depend on the arguments in which a batch arrives."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import flowstudy as fs
from flowstudy.measure.gradients.losses import random_readout
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.layers import changed_outputs
from flowstudy.measure.models.outputs import numbers_in
from flowstudy.measure.spectra.one_model import METHODS

N, U, V, CLASSES = 6, 4, 3, 5
EXACT = {"rtol": 0, "atol": 1e-12}   # of log10 norms, of order one: rounding of another order of summation


class Two(nn.Module):
    """An affine map of two inputs, a function, a read-out."""

    def __init__(self):
        super().__init__()
        self.u, self.v, self.out = nn.Linear(U, 7), nn.Linear(V, 7, bias=False), nn.Linear(7, CLASSES)

    def forward(self, u: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        h = torch.tanh(self.u(u) + self.v(v))
        return self.out(h if scale is None else scale * h)


class Of(nn.Module):
    """function(*parts, *inputs)"""

    def __init__(self, function: Callable[..., object], *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.function(*self.parts, *args, **kwargs)


class Joined(nn.Module):
    """The same net, of both inputs side by side."""

    def __init__(self, two: Two):
        super().__init__()
        self.first, self.out = nn.Linear(U + V, 7), two.out
        self.first.weight = nn.Parameter(torch.cat([two.u.weight, two.v.weight], 1).detach())
        self.first.bias = two.u.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.first(x)))


@pytest.fixture
def given() -> tuple[Two, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return Two(), torch.randn(N, U), torch.randn(N, V), torch.randint(CLASSES, (N,))


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_the_arguments_in_which_inputs_arrive_do_not_matter(given):
    """A tuple, a list, a dict, a mapping of another class, and what is no tensor: the same bits."""
    model, u, v, y = given
    flow = fs.gradient_flow(model, (u, v), y)
    for x in ([u, v], (u, v, None), {"v": v, "u": u}, UserDict(u=u, v=v), {"u": u, "v": v, "scale": 1.0}):
        other = fs.gradient_flow(model, x, y)
        pd.testing.assert_frame_equal(other.frame, flow.frame)
        assert other.loss == flow.loss
    alone = Joined(model)
    x = torch.cat([u, v], 1)
    pd.testing.assert_frame_equal(fs.gradient_flow(alone, (x,), y).frame, fs.gradient_flow(alone, x, y).frame)


def test_two_inputs_are_one_that_holds_both(given):
    """Loss, input gradient, path and the read-out's row are the joined net's; its first weights are both of ours."""
    model, u, v, y = given
    two, joined = fs.gradient_flow(model, (u, v), y), fs.gradient_flow(Joined(model), torch.cat([u, v], 1), y)
    assert two.loss == pytest.approx(joined.loss, rel=1e-12)
    assert two.log10_input_gradient_norm == pytest.approx(joined.log10_input_gradient_norm, abs=1e-12)
    both = 10 ** two.frame["log10_weight_gradient_norm"][:2]
    np.testing.assert_allclose(np.log10(np.hypot(*both)), joined.frame["log10_weight_gradient_norm"][0], **EXACT)
    for column in ("log10_weight_gradient_norm", "log10_error_signal_norm", "activation_correlation"):
        assert two.frame[column].iloc[-1] == pytest.approx(joined.frame[column].iloc[-1], abs=1e-12)
    assert two.path["layer"].tolist() == [0, 2, 3]   # the input is where both are: two layers lie before the sum
    assert two.path["log10_signal"].iloc[0] == two.log10_input_gradient_norm


class Attends(nn.Module):
    """Token ids, a table of positions given from outside, a mask of -inf, lengths on the side."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.k = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor, table: Tensor, mask: Tensor, extra: dict[str, list[Tensor]]) -> Tensor:
        h = self.embed(ids) + table
        h = F.scaled_dot_product_attention(self.q(h), self.k(h), h, attn_mask=mask)
        return self.out(h.mean(1)) + extra["more"][0]


def test_every_gradient_is_autograds():
    """Mixed inputs, of which two are differentiated, one of them inside a structure and for each sample."""
    torch.manual_seed(0)
    model, ids, table, y = Attends(), torch.randint(11, (N, 4)), torch.randn(4, 8), torch.randint(CLASSES, (N,))
    mask = torch.full((4, 4), -torch.inf).triu(1)
    x = {"ids": ids, "table": table, "mask": mask, "extra": {"more": [torch.randn(N, CLASSES)]}}
    flow = fs.gradient_flow(model, x, y)
    model = model.double()
    leaves = [t.double().requires_grad_() for t in (table, x["extra"]["more"][0])]
    loss = F.cross_entropy(model(ids, leaves[0], mask.double(), {"more": [leaves[1]]}), y)
    norms = [g.norm().log10().item() for g in torch.autograd.grad(
        loss, [model.embed.weight, model.q.weight, model.k.weight, model.out.weight], retain_graph=True)]
    np.testing.assert_allclose(flow.frame["log10_weight_gradient_norm"], norms, **EXACT)
    at_input = torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]).norm().log10().item()
    assert flow.log10_input_gradient_norm == pytest.approx(at_input, abs=1e-12) and flow.loss == loss.item()


def test_complex_and_real_inputs_go_together():
    """The norm over both is autograd's, |z|^2 = z conj(z)."""
    torch.manual_seed(0)
    z, x, weight = torch.randn(N, 3, dtype=torch.cfloat), torch.randn(N, 3), nn.Linear(3, 2)
    model = Of(lambda weight, z, x: weight(z.abs() * x), weight)
    flow = fs.gradient_flow(model, (z, x))
    leaves = [z.to(torch.cdouble).requires_grad_(), x.double().requires_grad_()]
    value = random_readout(weight.double()(leaves[0].abs() * leaves[1]))
    expected = torch.cat([g.abs().flatten() for g in torch.autograd.grad(value, leaves)]).norm().log10().item()
    assert flow.log10_input_gradient_norm == pytest.approx(expected, abs=1e-12)


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(U, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.two(adjacency @ torch.relu(self.one(adjacency @ x)))


def test_a_sparse_matrix_is_passed_on(given):
    """A graph's adjacency, dense or sparse: the same rows, and the gradient at the nodes alone where it is sparse."""
    _, u, _, y = given
    model, adjacency = Graph(), torch.eye(N) + torch.eye(N).roll(1, 0)
    dense, sparse = (fs.gradient_flow(model, (u, a), y) for a in (adjacency, adjacency.to_sparse()))
    np.testing.assert_allclose(dense.frame["log10_weight_gradient_norm"], sparse.frame["log10_weight_gradient_norm"],
                               **EXACT)
    assert sparse.log10_input_gradient_norm < dense.log10_input_gradient_norm


def test_samples_are_picked_where_there_is_an_entry_for_each():
    """Tensors of the batch's length are indexed, in structures too; others, and what is no tensor, belong to all."""
    packed = pack_padded_sequence(torch.randn(3, 2, 4), [2, 2, 1], batch_first=True)
    numbers = torch.arange(6)
    inputs = Inputs.of({"a": numbers.float()[:, None], "b": [numbers, torch.eye(3)], "c": "word", "p": packed})
    some = inputs[torch.tensor([4, 1])]
    assert some.kwargs["a"].tolist() == [[4.0], [1.0]] and some.kwargs["b"][0].tolist() == [4, 1]
    assert some.kwargs["b"][1].shape == (3, 3) and some.kwargs["c"] == "word"
    assert isinstance(some.kwargs["p"], PackedSequence) and len(some) == 2
    assert list(inputs.tensors)[:3] == ["a", ("b", 0), ("b", 1)]


def test_the_first_samples_alone(given):
    """`samples=` takes them of every input."""
    model, u, v, y = given
    pd.testing.assert_frame_equal(fs.gradient_flow(model, (u, v), y, samples=4).frame,
                                  fs.gradient_flow(model, (u[:4], v[:4]), y[:4]).frame)


def test_one_number_a_sample():
    """Token ids (sample,), and real numbers (sample,) in a tuple: the singular value of a scalar function is |f'|."""
    torch.manual_seed(0)
    ids, x, y = torch.arange(N), torch.linspace(-1, 1, N), torch.arange(N) % CLASSES
    looked_up = fs.gradient_flow(nn.Sequential(nn.Embedding(N, 8), nn.Linear(8, CLASSES)), ids, y)
    assert looked_up.frame["module"].tolist() == ["0", "1"] and np.isnan(looked_up.log10_input_gradient_norm)
    layer = nn.Linear(1, 1)
    model = Of(lambda layer, x: torch.sin(layer(x[:, None]))[:, 0], layer)
    assert np.isfinite(fs.gradient_flow(model, (x,), x, loss="mse").log10_input_gradient_norm)
    w, b = layer.weight.double().squeeze(), layer.bias.double()
    for method in METHODS:
        found = fs.jacobian_spectrum(model, (x,), method=method).log_singular_values[:, 0]
        torch.testing.assert_close(found, (w * torch.cos(w * x.double() + b)).abs().log().detach(), rtol=0, atol=1e-10)


# --- the Jacobian of one of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_jacobians_of_two_inputs_are_the_columns_of_the_joined_one(given, method):
    """|J|^2 = |J_u|^2 + |J_v|^2 in Frobenius norm, and each is what the net with the other one fixed has."""
    model, u, v, _ = given
    squares = [fs.jacobian_spectrum(model, {"u": u, "v": v}, wrt=name, method=method).singular_values.square().sum(1)
               for name in ("u", "v")]
    joined = fs.jacobian_spectrum(Joined(model), torch.cat([u, v], 1)).singular_values.square().sum(1)
    if method != "matrix_free":   # whose residuals are larger
        torch.testing.assert_close(sum(squares), joined, rtol=1e-10, atol=0)
    torch.testing.assert_close(sum(squares), joined, rtol=1e-6, atol=0)
    by_place = fs.jacobian_spectrum(model, (u, v), wrt=1, method=method)
    torch.testing.assert_close(by_place.singular_values.square().sum(1), squares[1], rtol=1e-12, atol=0)


def test_integer_inputs_leave_the_real_one_to_be_varied():
    """One real input needs no name; where there is none, the way out is followed."""
    torch.manual_seed(0)
    embed, out = nn.Embedding(7, 3), nn.Linear(3, 4)
    model = Of(lambda embed, out, ids, h=0.0: out(embed(ids) + h), embed, out)
    ids, h = torch.arange(N), torch.randn(N, 3)
    expected = torch.linalg.svdvals(out.weight.double()).log().expand(N, 3)
    torch.testing.assert_close(fs.jacobian_spectrum(model, (ids, h)).log_singular_values, expected, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match=r"`x` must be real, got torch.int64.*Pass `start=`"):
        fs.jacobian_spectrum(model, ids)
    found = fs.jacobian_spectrum(model, ids, start="parts.0")
    torch.testing.assert_close(found.log_singular_values, expected, rtol=1e-10, atol=0)


def test_layers_of_a_chain_with_a_second_input(given):
    """Of every layer from the input named, the last product is the whole's."""
    model, u, v, _ = given
    frame = fs.layer_jacobian_spectra(model, (u, v), wrt=0)
    last = frame[frame["layer"] == frame["layer"].max()].pivot(index="sample", columns="rank",
                                                              values="log_singular_value_from_input")
    whole = fs.jacobian_spectrum(model, (u, v), wrt=0).log_singular_values
    np.testing.assert_allclose(last.to_numpy()[:, :whole.shape[1]], whole, atol=1e-10)


# --- outputs ---------------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    place: Tensor
    hidden: Tensor


@dataclass
class Held:
    place: Tensor
    hidden: Tensor


STRUCTURES = {
    "tuple": lambda h: (h.argmax(1), h), "list": lambda h: [None, h], "named tuple": lambda h: Named(h.argmax(1), h),
    "dict": lambda h: {"place": h.argmax(1), "hidden": h}, "dataclass": lambda h: Held(h.argmax(1), h),
    "other mapping": lambda h: UserDict(h=h), "logits": lambda h: {"all": h.detach() + 1, "logits": h},
    "nested": lambda h: (h.argmax(1), {"deep": [h]}),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_structure_of_an_output_does_not_matter(given, structure):
    """The only real tensor, or the logits, is the output; flow, spectrum and training are those of the bare net."""
    model, u, v, y = given
    wrapped = Of(lambda model, u, v: STRUCTURES[structure](model(u, v)), model)
    flow, bare = fs.gradient_flow(wrapped, (u, v), y), fs.gradient_flow(model, (u, v), y)
    pd.testing.assert_frame_equal(flow.frame.drop(columns="module"), bare.frame.drop(columns="module"))
    torch.testing.assert_close(fs.jacobian_spectrum(wrapped, (u, v), wrt=1).log_singular_values,
                               fs.jacobian_spectrum(model, (u, v), wrt=1).log_singular_values, rtol=1e-12, atol=0)


def test_an_entry_is_named_where_there_are_several(given):
    """By its key, its place or its name; a loss of one's own then takes the entry."""
    model, u, v, y = given
    bare = fs.gradient_flow(model, (u, v), y).loss
    for entry, wrap in (("b", lambda h: {"a": h + 1, "b": h}), (1, lambda h: (h + 1, h)),
                        ("hidden", lambda h: Held(h + 1, h))):
        wrapped = Of(lambda model, u, v, wrap=wrap: wrap(model(u, v)), model)
        assert fs.gradient_flow(wrapped, (u, v), y, output=entry).loss == bare
        assert fs.gradient_flow(wrapped, (u, v), y, output=entry, loss=F.cross_entropy).loss == bare
        with pytest.raises(ValueError, match=r"`model` must return one tensor.*Pass `output=`, one of its keys: "):
            fs.gradient_flow(wrapped, (u, v), y)


INSIDE = {
    "named tuple": (lambda h: Named(h.argmax(1), h), lambda found: found.hidden),
    "dataclass": (lambda h: Held(h.argmax(1), h), lambda found: found.hidden),
    "dict": (lambda h: {"nothing": None, "h": h}, lambda found: found["h"]),
    "packed": (lambda h: PackedSequence(h, torch.tensor([len(h)])), lambda found: found.data),
}


@pytest.mark.parametrize("structure", INSIDE)
def test_the_structure_of_what_layers_put_out_does_not_matter(given, structure):
    """The first real tensor is the layer's output, and the next layer gets what it got: flow and monitor."""
    _, u, _, y = given
    wrap, unwrap = INSIDE[structure]

    class Wrapped(nn.Linear):
        def forward(self, x: Tensor) -> object:
            return wrap(super().forward(x))

    one, two = nn.Linear(U, 7), nn.Linear(7, CLASSES)
    wrapped = Wrapped(U, 7)
    wrapped.load_state_dict(one.state_dict())
    nets = Of(lambda one, two, x: two(one(x)), one, two), Of(lambda one, two, x: two(unwrap(one(x))), wrapped, two)
    flows = [fs.gradient_flow(net, u, y).frame.drop(columns="type") for net in nets]
    pd.testing.assert_frame_equal(*flows)
    frames = []
    for net in nets:
        net.zero_grad()
        with fs.GradientMonitor(net, every=1) as monitor:
            F.cross_entropy(net(u), y).backward()
        frames.append(monitor.frame)
    pd.testing.assert_frame_equal(*frames)


def test_a_changed_output_stays_in_its_structure(given):
    """A change of a layer's output, by which gates are looked at, leaves the container what it was."""
    _, u, _, _ = given
    for wrap in (lambda h: Named(h.argmax(1), h), lambda h: Held(h.argmax(1), h), lambda h: {"h": h}):
        net = Of(lambda layer, x, wrap=wrap: wrap(layer(x)), nn.Linear(U, 7))
        with changed_outputs({"net": net}, lambda _name, h: 2 * h):
            found = net(u)
        plain = net(u)
        assert type(found) is type(plain)
        assert torch.equal(next(numbers_in(found)), 2 * next(numbers_in(plain)))


def test_nets_without_layers_have_jacobians():
    """The identity's singular values are exactly 1, whichever way it is written."""
    x = torch.randn(N, U)
    for net, shown in ((nn.Identity(), x), (nn.Sequential(), x), (Of(lambda x: x), (x,)),
                       (Of(lambda x, ids: x), (x, torch.arange(N)))):
        assert (fs.jacobian_spectrum(net, shown).log_singular_values == 0).all()


def test_a_scalar_output(given):
    """It takes no labels, and says so; a loss of one's own, or the model's, is the way out."""
    model, u, v, y = given
    scalar = Of(lambda model, u, v: model(u, v).mean(), model)
    with pytest.raises(ValueError, match=r"`model` must have an output of shape \(sample, class\)"):
        fs.gradient_flow(scalar, (u, v), y)
    own, function = (fs.gradient_flow(scalar, (u, v), loss=loss) for loss in ("output", lambda z, _: z))
    pd.testing.assert_frame_equal(own.frame, function.frame)
    assert own.loss == function.loss


def test_the_monitor_watches_nets_of_several_inputs(given):
    """Called by name in the user's own loop: the norms are those of the same net called by place."""
    model, u, v, y = given
    frames = []
    for args, kwargs in (((u, v), {}), ((), {"u": u, "v": v})):
        model.zero_grad()
        with fs.GradientMonitor(model, every=1) as monitor:
            F.cross_entropy(model(*args, **kwargs), y).backward()
        frames.append(monitor.frame)
    pd.testing.assert_frame_equal(*frames)


# --- targets and losses ----------------------------------------------------------------------------------------------


def test_labels_of_minus_100_do_not_count(given):
    """Loss and weight gradients are those of the other samples alone, as the mean is over those that count."""
    model, u, v, y = given
    some = y.clone()
    some[[0, 3]] = -100
    keep = some != -100
    flow, alone = fs.gradient_flow(model, (u, v), some), fs.gradient_flow(model, (u[keep], v[keep]), y[keep])
    assert flow.loss == pytest.approx(alone.loss, rel=1e-12)
    np.testing.assert_allclose(flow.frame["log10_weight_gradient_norm"], alone.frame["log10_weight_gradient_norm"],
                               **EXACT)


def test_labels_at_positions_tell_the_axis_of_the_classes():
    """(sample, position, class) is (sample, class, position) turned; positions that share weights are like samples."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(U, CLASSES), torch.randn(N, 3, U), torch.randint(CLASSES, (N, 3))
    turned = Of(lambda model, x: model(x).mT, model)
    flows = [fs.gradient_flow(net, *batch) for net, batch in (
        (model, (x, y)), (turned, (x, y)), (model, (x.flatten(0, 1), y.flatten())))]
    for flow in flows[1:]:
        assert flow.loss == pytest.approx(flows[0].loss, rel=1e-12)
        np.testing.assert_allclose(flow.frame["log10_weight_gradient_norm"],
                                   flows[0].frame["log10_weight_gradient_norm"], **EXACT)
    square = torch.randn(N, CLASSES, U)
    labels = torch.randint(CLASSES, (N, CLASSES))
    with pytest.raises(ValueError, match=r"`y` must tell which axis of the output is the classes"):
        fs.gradient_flow(model, square, labels)
    last = fs.gradient_flow(model, square, labels, loss=lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()))
    second = fs.gradient_flow(turned, square, labels, loss=F.cross_entropy)
    assert last.loss == pytest.approx(second.loss, rel=1e-12)


def test_probabilities_and_real_targets_follow_the_model(given):
    """float32 targets of a float32 model, which is measured in float64: the loss is float64's."""
    model, u, v, _ = given
    p = torch.rand(N, CLASSES).softmax(-1)
    for name, function in (("cross_entropy", F.cross_entropy), ("mse", F.mse_loss),
                           (F.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)):
        expected = function(Two.forward(model.double(), u.double(), v.double()), p.double()).item()
        assert fs.gradient_flow(model.float(), (u, v), p, loss=name).loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("returned", [
    lambda loss, z: loss, lambda loss, z: {"loss": loss, "logits": z}, lambda loss, z: (loss, z),
    lambda loss, z: UserDict(z=z, loss=loss)])
def test_a_model_that_returns_its_own_loss(given, returned):
    """The rows are those of the same loss from outside, and nobody asks for y."""
    model, u, v, y = given
    own = Of(lambda model, u, v, labels: returned(F.cross_entropy(z := model(u, v), labels), z), model)
    flow = fs.gradient_flow(own, {"u": u, "v": v, "labels": y}, loss="output")
    outside = fs.gradient_flow(model, (u, v), y)
    assert flow.loss == outside.loss and flow.log10_input_gradient_norm == outside.log10_input_gradient_norm
    pd.testing.assert_frame_equal(flow.frame.drop(columns="module"), outside.frame.drop(columns="module"))


# --- training --------------------------------------------------------------------------------------------------------


def test_training_does_not_depend_on_the_arguments_either():
    """Kernel and trial of the net with two inputs and its logits among others: those of the joined net, to rounding."""
    torch.manual_seed(0)
    model, x, y = Two(), torch.randn(40, U + V), torch.randint(CLASSES, (40,))
    u, v = x.split([U, V], 1)
    many = Of(lambda model, u, v: {"embedding": u, "logits": model(u, v)}, model)
    options = {"samples": 16, "trial": 6, "batch_size": 8}
    two, joined = fs.trainability(many, {"u": u, "v": v}, y, **options), fs.trainability(Joined(model), x, y, **options)
    np.testing.assert_allclose(two.remaining, joined.remaining, rtol=1e-7)
    np.testing.assert_allclose(two.trial["loss"], joined.trial["loss"], rtol=1e-3)   # float32
    named = fs.trainability(Of(lambda model, u, v: (u, model(u, v)), model), (u, v), y, output=1, samples=16)
    np.testing.assert_allclose(named.remaining, two.remaining, rtol=1e-10)


def test_tokens_train_with_positions_left_out():
    """Labels (sample, position) with -100: the kernel is that of the turned output, and accuracy counts what counts."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(U, CLASSES), torch.randn(12, 3, U), torch.randint(CLASSES, (12, 3))
    y[:, 0] = -100
    found = fs.trainability(model, x, y, trial=4, batch_size=4, samples=8)
    turned = fs.trainability(Of(lambda model, x: model(x).mT, model), x, y, trial=4, batch_size=4, samples=8)
    np.testing.assert_allclose(found.remaining, turned.remaining, rtol=1e-10)
    np.testing.assert_allclose(found.trial["accuracy"], turned.trial["accuracy"], rtol=1e-6)
    shares = torch.bincount(y[y != -100], minlength=CLASSES).double()
    assert found.constant_loss == pytest.approx(torch.special.entr(shares / shares.sum()).sum().item(), rel=1e-9)


def test_gates_of_a_net_called_by_name():
    net = fs.HighwayNet(in_features=U, width=4, depth=3, out_features=CLASSES)
    x = torch.randn(N, U)
    pd.testing.assert_frame_equal(fs.gate_activity(net, {"x": x}).frame, fs.gate_activity(net, x).frame)


class ReadsTokens(nn.Module):
    """Tokens and real features, packed by their lengths, an LSTM from a state of zeros, its last states read out."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(11, U), nn.LSTM(U, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, ids: Tensor, features: Tensor, lengths: Tensor) -> Tensor:
        h = pack_padded_sequence(self.embed(ids) + features, lengths, batch_first=True, enforce_sorted=False)
        start = torch.zeros(1, len(ids), 3)
        return self.head(self.lstm(h, (start, start))[1][0][0])


def step_by_step(model: ReadsTokens, ids: Tensor, features: Tensor, lengths: Tensor) -> tuple[Tensor, list]:
    """The same, one sample after the other: its output, and for each time step the states of all that still run."""
    weights = [getattr(model.lstm, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    ends, states = [], [[] for _ in range(ids.shape[1])]
    for sequence, length in zip(model.embed(ids) + features, lengths.tolist(), strict=True):
        state = (torch.zeros(1, 3, dtype=torch.float64),) * 2
        for t in range(length):
            state = torch.lstm_cell(sequence[t:t + 1], state, *weights)
            states[t].append(state[0])
        ends.append(state[0])
    return model.head(torch.cat(ends)), states


@pytest.fixture
def read() -> tuple[ReadsTokens, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    x = {"ids": torch.randint(11, (N, 5)), "features": torch.randn(N, 5, U),
         "lengths": torch.tensor([5, 2, 4, 5, 1, 3])}
    return ReadsTokens(), x, torch.randint(CLASSES, (N,))


def test_an_lstm_of_several_inputs_is_measured_step_by_step(read):
    """A row for each time step; every gradient is autograd's of a loop over the cell, sample by sample."""
    model, x, y = read
    flow = fs.gradient_flow(model, x, y)
    assert flow.frame["module"].tolist() == ["embed", *["lstm"] * 5, "head"] and flow.dtype == "float64"
    model, features = model.double(), x["features"].double().requires_grad_()
    output, states = step_by_step(model, x["ids"], features, x["lengths"])
    loss = F.cross_entropy(output, y)

    def norm(*sources: Tensor) -> float:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, sources, retain_graph=True)]).norm().log10()

    lstm = norm(model.lstm.weight_ih_l0, model.lstm.weight_hh_l0)
    np.testing.assert_allclose(flow.frame["log10_weight_gradient_norm"],
                               [norm(model.embed.weight), *[lstm] * 5, norm(model.head.weight)], **EXACT)
    np.testing.assert_allclose(flow.frame["log10_error_signal_norm"][1:6], [norm(*some) for some in states], **EXACT)
    assert flow.log10_input_gradient_norm == pytest.approx(norm(features).item(), abs=1e-12)
    assert flow.loss == pytest.approx(loss.item(), rel=1e-14)


def test_the_jacobian_of_an_lstm_of_several_inputs(read):
    """Of the real one, lengths and tokens staying as they are: the singular values, three, of autograd's rows."""
    model, x, _ = read
    found = fs.jacobian_spectrum(model, x, method="dense").log_singular_values[:, :3].exp()
    model, features = model.double(), x["features"].double()
    full = torch.autograd.functional.jacobian(
        lambda own: step_by_step(model, x["ids"], own, x["lengths"])[0], features)
    own = torch.stack([full[n, :, n].flatten(1) for n in range(N)])
    torch.testing.assert_close(found, torch.linalg.svdvals(own)[:, :3], rtol=0, atol=1e-12)


def test_time_and_gates_of_a_recurrent_net_called_by_name():
    """Along time, and its gates at every step: those of the same net of one input."""
    torch.manual_seed(0)
    lstm, x, shift = nn.LSTM(U, 3, batch_first=True), torch.randn(N, 5, U).double(), torch.randn(5, U).double()
    one, two = Of(lambda lstm, x: lstm(x)[0], lstm), Of(lambda lstm, shift, x: lstm(x + shift)[0], lstm)
    times = [fs.jacobian_spectrum(m, given, part="time", samples=4) for m, given in (
        (one, x + shift), (two, {"x": x, "shift": shift}))]
    assert torch.equal(times[0].log_singular_values, times[1].log_singular_values) and times[0].factors == 5
    gates = [fs.gate_activity(m, given, torch.arange(N), gates={"lstm": lstm}) for m, given in (
        (one, x + shift), (two, {"x": x, "shift": shift}))]
    pd.testing.assert_frame_equal(gates[0].frame, gates[1].frame)
    pd.testing.assert_frame_equal(gates[0].by_class, gates[1].by_class)


class Tables(nn.Module):
    """Float32 tables in plain attributes, of which one is in a list, and one made in forward."""

    def __init__(self, real: torch.dtype | None = None):
        super().__init__()
        self.first, self.out, self.real = nn.Linear(U, 7), nn.Linear(7, CLASSES), real
        self.adjacency, self.tables = torch.rand(N, N), [torch.rand(7), torch.rand(V, 7)]

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        h = torch.tanh(self.adjacency @ self.first(u) * self.tables[0] + v @ self.tables[1])
        return self.out(h + torch.linspace(-1, 1, 7, dtype=self.real))


def test_float32_tables_beside_several_inputs_are_no_rounding(given):
    """In plain attributes and in a weighted loss: the gradients of the twin in float64; the model's own stay."""
    _, u, v, y = given
    model, weights = Tables(), torch.rand(CLASSES)
    flow = fs.gradient_flow(model, {"u": u, "v": v}, y, loss=nn.CrossEntropyLoss(weights))
    assert flow.dtype == "float64" and model.adjacency.dtype == model.tables[1].dtype == torch.float32
    twin = Tables(torch.float64).double()
    twin.load_state_dict(model.state_dict())
    twin.adjacency, twin.tables = model.adjacency.double(), [table.double() for table in model.tables]
    leaves = [u.double().requires_grad_(), v.double().requires_grad_()]
    loss = F.cross_entropy(twin(*leaves), y, weights.double())
    norms = [g.norm().log10() for g in torch.autograd.grad(
        loss, [twin.first.weight, twin.out.weight], retain_graph=True)]
    np.testing.assert_allclose(flow.frame["log10_weight_gradient_norm"], norms, **EXACT)
    at_input = torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]).norm().log10().item()
    assert flow.log10_input_gradient_norm == pytest.approx(at_input, abs=1e-12)
    assert flow.loss == pytest.approx(loss.item(), rel=1e-14)


class InFloat32(nn.Module):
    """A kernel of float32 alone."""

    def __init__(self):
        super().__init__()
        self.two = Two()

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        assert u.dtype == v.dtype == torch.float32, "a kernel of float32 alone"
        return self.two(u, v)


def test_several_inputs_follow_a_model_that_insists_on_its_dtype(given):
    """All of them, and real targets, from float64 too."""
    _, u, v, _ = given
    model, y = InFloat32(), torch.randn(N, CLASSES, dtype=torch.float64)
    flow = fs.gradient_flow(model, {"u": u.double(), "v": v}, y, loss="mse")
    assert flow.dtype == "float32"
    exact = fs.gradient_flow(model.two, (u, v), y.float(), loss="mse")
    np.testing.assert_allclose(flow.frame["log10_weight_gradient_norm"], exact.frame["log10_weight_gradient_norm"],
                               rtol=0, atol=1e3 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(torch.linspace(0.5, 1.5, CLASSES))])
def test_what_survives_in_float16_of_a_net_of_several_inputs(given, loss):
    """The same of one input that holds both, whichever way the loss is given; bfloat16 too."""
    model, u, v, y = given
    both = Of(lambda joined, u, v: joined(torch.cat([u, v], 1)), Joined(model))
    for dtype in ("float16", "bfloat16"):
        one = fs.trainability(both.parts[0], torch.cat([u, v], 1), y, loss=loss, dtype=dtype, samples=N).survival
        two = fs.trainability(both, {"u": u, "v": v}, y, loss=loss, dtype=dtype, samples=N).survival
        assert one.loss_scale == two.loss_scale
        np.testing.assert_array_equal(one.frame[["survives", "scaled"]], two.frame[["survives", "scaled"]])


# --- what is refused -------------------------------------------------------------------------------------------------


FLOW, SPECTRUM = fs.gradient_flow, fs.jacobian_spectrum
REFUSED = {   # what is called with model, u, v and y, and the words
    "no tensor": (lambda m, u, v, y: FLOW(m, "word"), r"`x` must be a tensor of inputs, got str"),
    "an array": (lambda m, u, v, y: FLOW(m, np.ones((2, 2))), r"`x` must be a tensor of inputs, got ndarray"),
    "none in it": (lambda m, u, v, y: FLOW(m, (None, 3)), r"`x` must be a tensor of inputs, got tuple"),
    "a class of its own": (lambda m, u, v, y: FLOW(m, (SimpleNamespace(u=u, v=v),)),
                           r"got tuple of SimpleNamespace\. .*a mapping or a dataclass, in a tuple"),
    "no samples": (lambda m, u, v, y: FLOW(m, (u[:0], v[:0])), r"`x` must be a batch of at least one sample"),
    "infinite": (lambda m, u, v, y: FLOW(m, {"u": u, "v": v.abs() / 0}), r"`x\['v'\]` must be finite, got 18 NaN or"),
    "one of two": (lambda m, u, v, y: FLOW(m, u), r"`x` must be what Two takes, .* got missing a required .*'v'"),
    "four": (lambda m, u, v, y: FLOW(m, (u, v, 1.0, 1)), r"`x` must be what Two takes, .* got too many positional"),
    "other name": (lambda m, u, v, y: FLOW(m, {"u": u, "w": v}), r"`x` must be what Two takes, .* got missing a"),
    "alone": (lambda m, u, v, y: FLOW(m, u[:, 0]), r"`x` must be a batch .* of one number each \(x,\)"),
    "left out": (lambda m, u, v, y: FLOW(m, (u, v), y * 0 - 100), r"`y` must have a label that counts, got -100"),
    "squares": (lambda m, u, v, y: FLOW(m, (u, v), u[:, 0], loss="mse"), r"`y` must have the output's shape \(6, 5\)"),
    "positions": (lambda m, u, v, y: FLOW(m, (u, v), y[:, None]), r"`y` must be labels of shape \(6,\) for an output"),
    "inside": (lambda m, u, v, y: FLOW(m, (u, v), y, loss="output"), r"`y` must be left out with loss='output'"),
    "no loss": (lambda m, u, v, y: FLOW(m, (u, v), loss="output"), r"`model` must return its loss .* got torch"),
    "no entry": (lambda m, u, v, y: FLOW(m, (u, v), y, output=1), r"`output` must be a key .* got 1 of Tensor.* leave"),
    "kernel": (lambda m, u, v, y: fs.trainability(m, (u, v), y, loss="output"), r"`loss` must be of outputs and"),
    "which": (lambda m, u, v, y: SPECTRUM(m, (u, v)), r"`wrt` must name the input .* Pass `wrt=`, one of 0, 1"),
    "unknown": (lambda m, u, v, y: SPECTRUM(m, {"u": u, "v": v}, wrt="w"), r"`wrt` must be the key .* 'u', 'v'"),
    "along time": (lambda m, u, v, y: SPECTRUM(m, (u, v), wrt=0, part="time"), r"`wrt` must be left out with part"),
    "integers": (lambda m, u, v, y: SPECTRUM(m, {"u": u, "v": y}, wrt="v"), r"`wrt` must be real, .* Pass one of 'u'"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("annotations_unchecked")
def test_what_is_refused(given, case):
    """In one line that names the argument and a way out."""
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as refused:
        call(*given)
    assert "\n" not in str(refused.value)


def test_samples_of_a_graph_of_the_batch_are_not_picked():
    """A row and a column for each sample: which samples are taken, and in which order, would change the graph."""
    class Links(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, links: Tensor) -> Tensor:
            return links @ self.layer(x)

    x, y = (torch.randn(6, 3), torch.eye(6) + 1), torch.arange(6) % 2
    assert fs.gradient_flow(Links(), x, y).frame["gradient"].tolist() == ["value"]
    for call in (lambda: fs.gradient_flow(Links(), x, y, samples=3), lambda: fs.trainability(Links(), x, y),
                 lambda: fs.jacobian_spectrum(Links(), x, samples=2)):
        with pytest.raises(ValueError, match=r"`x` must have samples that can be picked, got x\[1\] of shape \(6, 6\)"):
            call()


# --- what does not fit -----------------------------------------------------------------------------------------------

TAKES_FOUR = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
MEASURED = {"gradient_flow": lambda x, y: fs.gradient_flow(TAKES_FOUR, x, y),
            "trainability": lambda x, y: fs.trainability(TAKES_FOUR, x, y),
            "jacobian_spectrum": lambda x, _: fs.jacobian_spectrum(TAKES_FOUR, x)}


@pytest.mark.parametrize("call", MEASURED)
@pytest.mark.parametrize("x", [torch.ones(6, 7), torch.ones(6, 4, dtype=torch.uint8)], ids=["other width", "bytes"])
def test_a_batch_that_the_model_does_not_take_is_one_line(call, x):
    """The model's own error is in it, and is its cause; for images of bytes it says how they become numbers."""
    with pytest.raises(ValueError, match=rf"^{call}: `x` must be ") as caught:
        MEASURED[call](x, torch.arange(6) % 3)
    said = str(caught.value)
    assert "\n" not in said and ("x.float() / 255" in said) == (x.dtype == torch.uint8 and call != "jacobian_spectrum")
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_are_integers_of_any_size(dtype):
    """The numbers are those of int64 labels."""
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    one, other = (MEASURED["gradient_flow"](x, labels).frame for labels in (y.to(dtype), y))
    pd.testing.assert_frame_equal(one, other)
    assert MEASURED["trainability"](x, y.to(dtype)).loss == MEASURED["trainability"](x, y).loss


def test_labels_are_no_real_numbers():
    """Of that shape they would be probabilities."""
    for call in ("gradient_flow", "trainability"):
        with pytest.raises(ValueError, match=rf"^{call}: `y` must be probabilities of shape .* Labels are integers"):
            MEASURED[call](torch.randn(6, 4), (torch.arange(6) % 3).float())
