"""The numbers of `gradient_flow` and `jacobian_spectrum` are plain autograd's, whatever the model does in its forward.

Most models are rows of a table, each compared with the slow twin by every route and in every chunk; below it stand the
laws that need a test of their own: contexts, threads, weights without layers, parametrizations, what is refused.
"""

import math
import random
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mp_reference
import numpy as np
import pytest
import torch
from any_module import (
    Called,
    Of,
    Reversal,
    StraightThrough,
    Surrogate,
    half_detached,
    hook_on_tensor,
    rms_in_float32,
    without_gradient,
)
from cases import assert_same, fingerprint
from slow_twin import assert_flow_right, assert_spectrum_right, by_product, flow_of, jacobians_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from flowstudy import gradient_flow, jacobian_spectrum, layer_jacobian_spectra
from flowstudy.measure.spectra import choice
from flowstudy.nets import HighwayBlock, PlainBlock, ResidualBlock


def square(output: Tensor, _y: object) -> Tensor:
    """A loss of any output, complex too; no symmetry hides a mistake."""
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape)
    return (output.abs().square() * weights).mean()


# --- models that were measured wrong by a symbolic trace, or by a second forward pass ---------------------------------


class Optional(nn.Module):
    """A second argument that is never given: a symbolic trace takes the branch that the model never does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h if mask is None else 3 * h)


class OptionalLayer(Optional):
    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h if z is None else h + self.a(z))


class Counting(Optional):
    """The first call is not as the second."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(torch.tanh(self.a(x)) * self.calls)


class Running(Optional):
    """A running mean that each forward pass moves, before it is used."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        with torch.no_grad():
            self.mean.mul_(0.5).add_(h.detach().mean(0))
        return self.b(torch.tanh(h - self.mean))


class Doubled(PlainBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Cubed(ResidualBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.affine(x) ** 3


class Leaky(HighwayBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Complex(nn.Module):
    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 5, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.w.dtype) @ self.w


class Listed(nn.Module):
    """A chain of weights without layers."""

    def __init__(self, depth: int, width: int, out: nn.Module):
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(width, width) / (2 * width**0.5)) for _ in range(depth)])
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        for w in self.w:
            x = torch.tanh(x @ w)
        return self.out(x)


class Named(nn.Module):
    """The same, by attributes and through F.linear."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        self.depth = depth
        for i in range(depth):
            setattr(self, f"w{i}", nn.Parameter(torch.randn(width, width) / (2.5 * width**0.5)))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = torch.tanh(F.linear(x, getattr(self, f"w{i}")))
        return x


class ListsContainers(nn.Module):
    """Its hidden layers hold modules, and are not called themselves."""

    def __init__(self):
        super().__init__()
        self.hidden_layers = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), nn.Tanh()]) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for linear, activation in self.hidden_layers:
            x = activation(linear(x))
        return x


@torch.jit.script
def scripted(h: Tensor) -> Tensor:
    if h.size(0) > 100:
        return h
    return torch.sin(h) * 2


def layers(*between: Callable[[Tensor], Tensor]) -> nn.Module:
    """linear 4 -> 5, the functions, linear 5 -> 3"""
    def function(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        h = a(x)
        for step in between:
            h = step(h)
        return b(h)
    return Of(function, nn.Linear(4, 5), nn.Linear(5, 3))


def aside(function: Callable[..., Tensor]) -> nn.Module:
    """layers a and b in turn, with `function(hidden, h)` in a side branch"""
    return Of(lambda a, hidden, b, x: b(torch.tanh(h := a(x)) * (1 + function(hidden, h))),
              nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3))


def hooked(register: str, hook: Callable, *, at: str = "") -> nn.Module:
    """A chain of four layers with a hook on one module or on itself."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 5), nn.Sigmoid()), nn.Linear(5, 3))
    getattr(model.get_submodule(at), register)(hook)
    return model


def dead_before_a_backward_hook() -> nn.Module:
    """The last of three samples at this seed has no live unit, so that it shows nothing of the hook behind."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 3))
    for layer, weight in zip(model[::2], ([[-1.0, 0.5], [-0.3, 1.0]], [[1.0, 2.0], [3.0, -1.0]]), strict=False):
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.zeros(2)
    model[2].register_full_backward_hook(lambda module, before, after: (0.5 * before[0],))
    return model


def tied() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), shared, nn.Tanh(), shared, nn.GELU(), shared, nn.Linear(4, 3))


def attention(**how: object) -> nn.Module:
    return Of(lambda norm, a, x: x + a(norm(x), norm(x), norm(x))[0], nn.LayerNorm(4),
              nn.MultiheadAttention(4, 2, **how))


def sequence_first(inner: nn.Module) -> nn.Module:
    """(sample, time, feature) with as many samples as times: which axis is which, the shapes do not tell."""
    return Of(lambda a, inner, b, x: b(inner(a(x).transpose(0, 1)).transpose(0, 1)),
              nn.Linear(4, 4), inner, nn.Linear(4, 2))


def proxied(h: Tensor) -> Tensor:
    return -h if hasattr(h, "node") or isinstance(h, torch.fx.Proxy) else torch.sin(h)


def asks_for_gradients(h: Tensor) -> Tensor:
    return torch.sin(h) * (3 if h.requires_grad else 1) * (2 if torch.is_grad_enabled() else 1)


def slope(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    """A layer of the gradient of another: the output of a net that solves a differential equation."""
    x = x if x.requires_grad else x.requires_grad_()
    return b(torch.autograd.grad(a(x).sin().square().sum(), x, create_graph=True)[0])


def stopped(h: Tensor) -> Tensor:
    h.register_hook(torch.zeros_like)
    return h


@dataclass(frozen=True)
class Case:
    """What to measure; `refused` is the message of a model whose samples have no Jacobians of their own."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 4)
    dtype: str = "float64"
    layers: bool = True
    cancelled: bool = False
    refused: str = ""


NO_WAY, MIXED = r"`model` must have an output that depends on x", r"`model` must treat samples one by one"

CASES = {
    # branches
    "optional argument": Case(Optional),
    "optional layer": Case(OptionalLayer),
    "asks for a proxy": Case(lambda: layers(proxied)),
    "asks for gradients": Case(lambda: layers(asks_for_gradients)),
    "asks its weight": Case(lambda: Of(lambda a, b, x: b(torch.tanh(a(x)) * (2 if a.weight.requires_grad else 1)),
                                       nn.Linear(4, 5), nn.Linear(5, 3))),
    "asks the numbers": Case(lambda: layers(lambda h: h.sin() if h.sum() > -1e9 else h)),
    "asks the batch's size": Case(lambda: layers(lambda h: torch.tanh(h * len(h)))),
    "counts its calls": Case(Counting),
    "moves a buffer": Case(Running, refused=MIXED[:0]),
    # gradients of their own
    "straight-through": Case(lambda: layers(StraightThrough.apply)),
    "straight-through aside": Case(lambda: aside(lambda hidden, h: StraightThrough.apply(hidden(h)))),
    "reversal": Case(lambda: layers(Reversal.apply, torch.tanh)),
    "reversal aside": Case(lambda: aside(lambda hidden, h: Reversal.apply(hidden(h)))),
    "reversal that cancels": Case(lambda: Of(lambda a, b, c, x: c((h := a(x)) + Reversal.apply(b(h))),
                                             nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)), cancelled=True),
    "surrogate": Case(lambda: layers(Surrogate.apply)),
    "surrogate aside": Case(lambda: aside(lambda hidden, h: Surrogate.apply(hidden(h)))),
    # out of the loss's sight
    "no_grad block": Case(lambda: aside(lambda hidden, h: torch.tanh(without_gradient(hidden, h)))),
    "no_grad first": Case(lambda: Of(lambda a, b, x: b(torch.tanh(without_gradient(a, x))),
                                     nn.Linear(4, 5), nn.Linear(5, 3)), refused=NO_WAY),
    "detached aside": Case(lambda: aside(lambda hidden, h: hidden(h).detach())),
    "half detached": Case(lambda: layers(torch.tanh, half_detached)),
    "half detached twice": Case(lambda: layers(half_detached, torch.sin, lambda h: half_detached(h.flip(1)))),
    "by way of numpy": Case(lambda: layers(lambda h: h * torch.from_numpy(np.sin(h.detach().numpy())))),
    "by way of .data": Case(lambda: layers(lambda h: h + h.data.sin())),
    "frozen first": Case(lambda: nn.Sequential(nn.Linear(4, 5).requires_grad_(False), nn.Tanh(), nn.Linear(5, 3))),
    "frozen between": Case(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5).requires_grad_(False),
                                                 nn.Linear(5, 3))),
    "dead": Case(lambda: layers(lambda h: torch.relu(h - 1e3))),
    # hooks
    "hook on the root": Case(lambda: hooked("register_forward_hook", lambda m, args, out: 3 * out)),
    "pre-hook on the root": Case(lambda: hooked("register_forward_pre_hook", lambda m, args: (args[0].sin(),))),
    "hook inside": Case(lambda: hooked("register_forward_hook", lambda m, args, out: out + args[0], at="2")),
    "hook on a layer": Case(lambda: hooked("register_forward_hook", lambda m, args, out: out.sin(), at="2.0")),
    "pre-hook on a layer": Case(lambda: hooked("register_forward_pre_hook", lambda m, args: (2 * args[0],), at="2.0")),
    "hook that counts": Case(lambda: hooked("register_forward_hook", lambda m, args, out: None, at="1")),
    "backward hook": Case(lambda: hooked("register_full_backward_hook", lambda m, g, h: (0.5 * g[0],), at="2")),
    "backward hook on a layer": Case(lambda: hooked("register_full_backward_hook", lambda m, g, h: (-g[0],), at="2.0")),
    "backward pre-hook": Case(lambda: hooked("register_full_backward_pre_hook", lambda m, g: (0.5 * g[0],), at="1")),
    "backward hook behind dead units": Case(dead_before_a_backward_hook, (3, 2)),
    "hook on a tensor": Case(lambda: layers(hook_on_tensor)),
    "hook that stops the gradient": Case(lambda: aside(lambda hidden, h: stopped(hidden(h).sin()))),
    "overridden call": Case(lambda: Called(lambda a, b, x: b(torch.tanh(a(x))), nn.Linear(4, 5), nn.Linear(5, 3))),
    "overridden call inside": Case(lambda: nn.Sequential(nn.Linear(4, 5), Called(torch.tanh), nn.Linear(5, 3))),
    # subclasses of what the library knows
    "subclass of the plain block": Case(lambda: nn.Sequential(*(Doubled(nn.Linear(4, 4), "tanh") for _ in range(5)))),
    "subclass of the residual block": Case(lambda: nn.Sequential(*(Cubed(nn.Linear(4, 4)) for _ in range(3)))),
    "subclass of the highway block": Case(lambda: nn.Sequential(*(Leaky(nn.Linear(4, 8)) for _ in range(3)))),
    "subclass of linear": Case(lambda: nn.Sequential(Halved(4, 5), nn.Tanh(), Halved(5, 3))),
    # always random
    "functional dropout": Case(lambda: layers(lambda h: F.dropout(h, 0.4, training=True), torch.tanh)),
    "random slopes": Case(lambda: layers(lambda h: F.rrelu(h, 0.1, 0.9, training=True))),
    "noise": Case(lambda: layers(lambda h: h * (1 + torch.randn_like(h)))),
    "noise at two places": Case(lambda: nn.Sequential(layers(lambda h: h * torch.rand_like(h)), Of(F.gumbel_softmax))),
    # in float32 inside
    "float32 inside": Case(lambda: layers(rms_in_float32), dtype="float32"),
    "float32 at the end": Case(lambda: nn.Sequential(layers(torch.tanh), Of(lambda h: h.float())), dtype="float32"),
    "RMSNorm": Case(lambda: nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Linear(5, 3))),
    # in place
    "in place first": Case(lambda: nn.Sequential(nn.SiLU(inplace=True), nn.Linear(4, 5), nn.ReLU(True),
                                                 nn.Linear(5, 3))),
    "in place on slices": Case(lambda: layers(lambda h: h.sin().index_fill_(1, torch.tensor([1]), 0.0).add_(h))),
    # shared, and weights without layers
    "tied": Case(tied),
    "weights in a list": Case(lambda: Listed(50, 4, nn.Linear(4, 3))),
    "weights in a list alone": Case(lambda: Listed(5, 4, nn.Identity())),
    "weights by name": Case(lambda: Named(30, 4)),
    # sequences, attention, other transforms
    "as many times as samples": Case(lambda: sequence_first(Of(lambda h: h.cumsum(0).sin())), (3, 3, 4)),
    "attention, time first": Case(lambda: sequence_first(attention()), (3, 3, 4)),
    "attention": Case(lambda: attention(batch_first=True), (2, 3, 4)),
    "transformer": Case(lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), (2, 3, 4)),
    "recurrent": Case(lambda: Of(lambda r, x: r(x[:, 2], r(x[:, 1], r(x[:, 0]))), nn.GRUCell(4, 3)), (2, 3, 4)),
    "as many features as samples": Case(lambda: Of(lambda a, b, x: b((a(x).T * 2).sin().T), nn.Linear(4, 4),
                                                   nn.Linear(4, 4)), (4, 4)),
    "samples turned round twice": Case(lambda: Of(lambda a, b, x: b(torch.tanh(a(x.flip(0)).flip(0))),
                                                  nn.Linear(4, 5), nn.Linear(5, 3))),
    "samples on another axis": Case(lambda: layers(lambda h: h.T.contiguous().sin().T, torch.tanh)),
    "samples side by side": Case(lambda: layers(lambda h: (h.reshape(1, -1).sin() * 2).view(h.shape))),
    "scripted function": Case(lambda: layers(scripted, torch.tanh)),
    "vmap": Case(lambda: layers(torch.func.vmap(lambda h: torch.outer(h, h).sum(0).sin()))),
    "gradient inside": Case(lambda: Of(
        lambda a, b, x: b(torch.func.vmap(torch.func.grad(lambda h: h.sin().prod()))(a(x))),
        nn.Linear(4, 5), nn.Linear(5, 3))),
    "gradient of a layer inside": Case(lambda: Of(slope, nn.Linear(4, 5), nn.Linear(4, 3))),
    "layers by their weights": Case(lambda: Of(
        lambda a, b, x: F.linear(torch.tanh(F.linear(x, a.weight, a.bias)), b.weight),
        nn.Linear(4, 5), nn.Linear(5, 3)), layers=False),
    "vmap of a layer": Case(lambda: Of(lambda a, b, x: b(torch.tanh(torch.func.vmap(a)(x))), nn.Linear(4, 5),
                                       nn.Linear(5, 3)), layers=False),
    "convolutions": Case(lambda: nn.Sequential(nn.Conv2d(2, 3, 2), Doubled(nn.Conv2d(3, 3, 1)), nn.MaxPool2d(2),
                                               nn.Flatten(), nn.Linear(12, 3)), (2, 2, 5, 5)),
    "checkpointed function": Case(lambda: layers(lambda h: checkpoint(torch.sin, h, use_reentrant=False))),
    "checkpointed layer": Case(lambda: aside(lambda hidden, h: checkpoint(hidden, h, use_reentrant=False))),
    "distances": Case(lambda: Of(lambda x: torch.cdist(x, x)), (2, 3, 3), layers=False),
    "identity": Case(lambda: Of(lambda x: x), layers=False),
    "nothing": Case(nn.Sequential, layers=False),
    # complex: |h|^2 = h conj(h)
    "complex": Case(lambda: nn.Sequential(Complex(torch.cdouble), Of(torch.abs), nn.Linear(5, 3))),
    "complex in single precision": Case(lambda: nn.Sequential(Complex(torch.cdouble), Of(
        lambda z: z.to(torch.cfloat).abs().double()), nn.Linear(5, 3)), dtype="float32"),
    # one sample's output depends on another's: gradients, but no Jacobians
    "mixes by the mean": Case(lambda: layers(lambda h: h - h.mean(0)), refused=MIXED),
    "mixes in the middle": Case(lambda: layers(lambda h: h[[0, 2, 1, 3]].sin()), (4, 4), refused=MIXED),
    "mixes in a sum of zero": Case(lambda: Of(lambda a, x: (h := a(x)) + h.mean() * h.new_tensor([1.0, 1.0, -2.0]),
                                              nn.Linear(4, 3)), refused=MIXED),
    "mixes a later layer's": Case(lambda: layers(torch.tanh, lambda h: torch.cat([h[:1], h[1:] + h[:-1] / 2])),
                                  refused=MIXED),
    "attention over samples": Case(attention, (4, 3, 4), refused=MIXED),
    "normalised over samples": Case(lambda: layers(lambda h: F.batch_norm(h, None, None, training=True)),
                                    (6, 4), refused=MIXED),
}


def made(name: str) -> tuple[Case, nn.Module, Tensor]:
    torch.manual_seed(0)
    case = CASES[name]
    return case, case.build(), torch.randn(case.shape)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.layers])
def test_gradients_are_autograds(name):
    """Every layer that ran has its row, with the norms of one plain forward and backward pass at that random state."""
    case, model, x = made(name)
    before = fingerprint(model), x.clone()
    found = gradient_flow(model, x, loss=square)
    assert_same(before, (fingerprint(model), x))
    assert_flow_right(found, flow_of(model, x, None, square), case.dtype, case.cancelled)


HOWS = [{}, {"method": "dense"}, {"method": "dense", "chunk": 2}, {"mode": "train", "chunk": 1}]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_spectra_are_those_of_the_jacobian_row_by_row(name):
    """By every route, in every chunk: of a model that is always random, the one that this random state draws."""
    case, model, x = made(name)
    for how in HOWS:
        torch.manual_seed(1)
        found = jacobian_spectrum(model, x, **how)
        torch.manual_seed(1)
        true = jacobians_of(model.train(how.get("mode") == "train"), x)
        assert_spectrum_right(found, true, case.dtype)
        assert math.isclose(found.mean_squared.mean(), np.square(true).sum((1, 2)).mean() / true.shape[2],
                            rel_tol=1e-10 if case.dtype == "float64" else 1e-5), how


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_the_product_of_factors_is_the_jacobian(name):
    """Of a model that the product route takes for a chain: cut where one value carries all, hooks and all."""
    case, model, x = made(name)
    torch.manual_seed(1)
    found = by_product(model, x)
    torch.manual_seed(1)
    if found is not None:
        assert_spectrum_right(found, jacobians_of(model.eval(), x), case.dtype)


@pytest.mark.parametrize("function", [lambda g: g / g.norm(), torch.relu, torch.sign, lambda g: g.clamp(-0.01, 0.01)])
def test_a_backward_pass_that_is_not_linear_has_no_jacobian(function):
    """Rows of what it gives multiply no gradient: hooks that normalise, clip or take signs are named."""
    def hook(h: Tensor) -> Tensor:
        h.register_hook(function)
        return h

    torch.manual_seed(0)
    model, x = layers(torch.tanh, hook), torch.randn(3, 4)
    with pytest.raises(ValueError, match="linear in the gradient"):
        jacobian_spectrum(model, x)
    with pytest.raises(ValueError, match="linear in the gradient"):
        jacobian_spectrum(nn.Sequential(nn.Linear(4, 4), model), x, start="0")


@pytest.mark.parametrize("method", ["auto", "dense"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_no_spectrum_where_samples_have_no_jacobian(name, method):
    """One line, not another model's numbers."""
    case, model, x = made(name)
    with pytest.raises(ValueError, match=f"^jacobian_spectrum: {case.refused}") as caught:
        jacobian_spectrum(model, x, method=method)
    assert "\n" not in str(caught.value)


# --- which rows there are --------------------------------------------------------------------------------------------


class Sight(nn.Module):
    """One layer of each kind: under no_grad, detached, frozen, behind a dead ReLU, times zero, and trained."""

    def __init__(self):
        super().__init__()
        self.under, self.detached, self.frozen, self.dead, self.times_zero, self.trained = (
            nn.Linear(4, 4) for _ in range(6))
        self.frozen.requires_grad_(False)
        nn.init.constant_(self.dead.bias, -1e3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.frozen(x) * (1 + without_gradient(self.under, x) + self.detached(x).detach())
        return self.trained(seen + torch.relu(self.dead(x)) + 0.0 * self.times_zero(x))


def test_a_layer_without_gradient_is_not_one_with_a_gradient_of_zero():
    """Each layer that ran has a row; `gradient` says none, zero or value, the norm nan, -inf or a number."""
    torch.manual_seed(0)
    frame = gradient_flow(Sight(), torch.randn(3, 4), torch.arange(3)).frame.set_index("module")
    norm, error = frame["log10_weight_gradient_norm"], frame["log10_error_signal_norm"]
    assert frame["gradient"].to_dict() == {"frozen": "none", "under": "none", "detached": "none", "dead": "zero",
                                           "times_zero": "zero", "trained": "value"}
    assert norm[["frozen", "under", "detached"]].isna().all() and (norm[["dead", "times_zero"]] == -math.inf).all()
    assert np.isfinite(norm["trained"]) and np.isfinite(error["frozen"]) and error[["under", "detached"]].isna().all()
    assert np.isfinite(frame[["activation_mean", "activation_mean_square"]]).all(axis=None)


@pytest.mark.parametrize("model, rows", [
    (lambda: Listed(50, 16, nn.Linear(16, 3)), [*(f"w.{i}" for i in range(50)), "out"]),
    (lambda: Listed(50, 16, nn.Identity()), [f"w.{i}" for i in range(50)]),
    (lambda: Named(30, 16), [f"w{i}" for i in range(30)]),
])
def test_weights_without_layers_are_rows(model, rows):
    """A row per use, named as the weight, with autograd's norms over 10 decades and more: the gradient vanishes."""
    torch.manual_seed(0)
    model, x, y = model(), torch.randn(8, 16), torch.arange(8) % 3
    flow = gradient_flow(model, x, y)
    assert flow.frame["module"].tolist() == rows
    assert_flow_right(flow, flow_of(model, x, y, F.cross_entropy))
    assert flow.verdict.kind == "vanishing"
    assert_spectrum_right(jacobian_spectrum(model, x[:2]), jacobians_of(model, x[:2]))


PARAMETRIZED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "orthogonal by Cayley": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
    "of one's own": lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", Of(torch.tanh)),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_parametrization_is_no_layer(name):
    """The layers, error signals, verdict and spectrum are those of the net of the weights that it makes."""
    torch.manual_seed(0)
    wrap = PARAMETRIZED[name]
    model = nn.Sequential(wrap(nn.Linear(4, 6)), nn.Tanh(), wrap(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3))
    model.double().eval()
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    for one, other in zip(plain[::2], model[::2], strict=True):
        one.weight.data, one.bias.data = other.weight.detach().clone(), other.bias.detach().clone()
    x, y = 100 * torch.randn(8, 4), torch.arange(8) % 3
    found, true = gradient_flow(model, x, y), gradient_flow(plain, x, y)
    columns = ["layer", "module", "gradient", "log10_error_signal_norm", "activation_mean_square"]
    np.testing.assert_allclose(found.frame[columns[3:]], true.frame[columns[3:]], rtol=1e-10, atol=1e-10)
    assert found.frame[columns[:3]].equals(true.frame[columns[:3]])
    assert found.verdict.kind == true.verdict.kind
    assert_spectrum_right(jacobian_spectrum(model, x), jacobians_of(plain, x))


def test_a_norm_that_iterates_is_measured_at_its_next_step():
    """spectral_norm moves its vectors at each forward pass in train mode: the loss is the next one's, and no move."""
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)).double()
    x, before = torch.randn(5, 4), fingerprint(model)
    found = gradient_flow(model, x, loss=square)
    assert_same(before, fingerprint(model))
    assert found.loss == pytest.approx(square(model(x.double()), None).item(), rel=1e-13)


# --- one measurement, whatever is around it --------------------------------------------------------------------------

CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "meta device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "warnings": lambda: warnings.catch_warnings(action="error"),
}


def measured(model: nn.Module, x: Tensor, y: Tensor) -> tuple[object, ...]:
    flow, spectra = gradient_flow(model, x, y), [jacobian_spectrum(model, x, **how) for how in HOWS]
    return (flow.frame.to_dict("list"), flow.log10_input_gradient_norm, flow.loss, flow.dtype,
            [(s.log_singular_values.tolist(), s.log_error.tolist(), s.dtype) for s in spectra])


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["random slopes", "no_grad block"])
def test_the_context_of_the_call_changes_nothing(name, context):
    """Bit by bit the same inside as outside; afterwards the context is as it was."""
    _, model, x = made(name)
    y = torch.arange(3)
    torch.manual_seed(1)
    outside = measured(model, x, y)
    torch.manual_seed(1)
    with CONTEXTS[context]():
        state = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        inside = measured(model, x, y)
        assert state == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    np.testing.assert_equal(inside, outside)


def test_inputs_made_in_inference_mode_are_inputs():
    """They cannot be saved for a backward pass, but their values can."""
    _, model, x = made("optional argument")
    with torch.inference_mode():
        same, y = x.clone(), torch.arange(3)
        inside = measured(model, same, y)
    np.testing.assert_equal(measured(model, same, y), measured(model, x, torch.arange(3)))
    np.testing.assert_equal(inside, measured(model, x, torch.arange(3)))


def test_a_model_that_counts_is_not_run():
    """What is measured is a copy: the model's own count of its calls stays."""
    _, model, x = made("counts its calls")
    measured(model, x, torch.arange(3))
    assert model.calls == 0


def test_measuring_does_not_disturb_training_in_another_thread():
    """Net A trains while net B is measured: A ends, bit by bit, where it ends alone."""

    def train(go_on: Callable[[int], bool]) -> list[float]:
        generator, losses = torch.Generator().manual_seed(0), []
        net, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 8, generator=generator)
        for p in net.parameters():
            nn.init.normal_(p, generator=generator)
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        while go_on(len(losses)):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    measured = Of(lambda inner, x: inner(x) + 0, nn.Sequential(*(nn.Linear(8, 8) for _ in range(20))))
    x, y, stop = torch.randn(4, 8), torch.arange(4), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, lambda step: not stop.is_set())
        try:
            for _ in range(3):
                gradient_flow(measured, x, y)
                jacobian_spectrum(measured, x)
        finally:
            stop.set()
        losses = training.result()
    assert losses == train(lambda step: step < len(losses))


def test_threads_measure_side_by_side():
    """Four threads, four models: each has the numbers that it has alone."""
    names = ["no_grad block", "attention", "half detached", "weights by name"]
    models = [made(name)[1:] for name in names]
    alone = [gradient_flow(model, x, loss=square).frame for model, x in models]
    spectra = [jacobian_spectrum(model, x).log_singular_values.numpy() for model, x in models]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            together = pool.map(lambda pair: gradient_flow(*pair, loss=square).frame, models)
            beside = pool.map(lambda pair: jacobian_spectrum(*pair).log_singular_values.numpy(), models)
            assert all(one.equals(other) for one, other in zip(alone, together, strict=True))
            np.testing.assert_equal(list(beside), spectra)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_dropout_in_train_mode_draws_one_mask(chunk):
    """W_2 diag(mask) W_1 has as many non-zero singular values as units are kept, whatever the chunk."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(14, 10), nn.Dropout(0.5), nn.Linear(10, 20)), torch.randn(6, 14)
    torch.manual_seed(3)
    found = jacobian_spectrum(model, x, method="dense", mode="train", chunk=chunk)
    torch.manual_seed(3)
    kept = F.dropout(torch.ones(6, 10, dtype=torch.float64), 0.5).count_nonzero(1)
    assert torch.equal(found.rank, kept)
    torch.manual_seed(3)
    assert_spectrum_right(found, jacobians_of(model, x))


@pytest.mark.parametrize("name", ["functional dropout", "random slopes", "noise", "noise at two places"])
def test_one_random_state_is_one_measurement(name):
    """A random model measured twice from one random state has the same numbers; from another, others."""
    _, model, x = made(name)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append((jacobian_spectrum(model, x).log_singular_values.tolist(),
                      gradient_flow(model, x, loss=square).loss))
    np.testing.assert_equal(found[0], found[1])
    assert found[0][0] != found[2][0] and found[0][1] != found[2][1]


# --- what is known, and how well -------------------------------------------------------------------------------------


def haar(generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]


def graded(*decades: float) -> Callable[[torch.Generator], list[Tensor]]:
    """Factors of singular values 1 to 10^-decades, turned at random."""
    def factors(generator: torch.Generator) -> list[Tensor]:
        return [haar(generator) @ torch.diag(torch.logspace(0, -end, 8, dtype=torch.float64)) @ haar(generator)
                for end in decades]
    return factors


def lame(generator: torch.Generator) -> list[Tensor]:
    """The last of 8 units is switched off: an exact zero among the singular values."""
    switch = torch.eye(8, dtype=torch.float64)
    switch[7, 7] = 0.0
    return [haar(generator), switch, haar(generator)]


def twins(generator: torch.Generator) -> list[Tensor]:
    """Two rows that differ by 1e-13 of one entry."""
    weight = haar(generator)
    weight[7] = weight[6]
    weight[7, 0] += 1e-13
    return [weight, haar(generator)]


ILL_CONDITIONED = {
    "1 decade": graded(1, 0), "14 decades": graded(14, 0), "14 decades in the middle": graded(0, 14, 0),
    "20 decades": graded(20, 0), "twice 9 decades": graded(9, 9), "12 times 3 decades": graded(*[3] * 12),
    "one zero": lame, "all but equal rows": twins,
}


@pytest.mark.parametrize("method", ["auto", "product", "dense"])
@pytest.mark.parametrize("name", ILL_CONDITIONED)
def test_small_singular_values_are_right_or_not_known(name, method):
    """Against 50 digits: within the stated error or counted as not known; -inf is a zero; above 1e-12 s_max known."""
    factors = ILL_CONDITIONED[name](torch.Generator().manual_seed(0))
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in factors)).double()
    for layer, factor in zip(model, factors, strict=True):
        layer.weight.data = factor
    spectrum = jacobian_spectrum(model, torch.ones(1, 8, dtype=torch.float64), method=method)
    true = mp_reference.log_singular_values(factors)
    found, stated = spectrum.log_singular_values[0], spectrum.log_error[0]
    zero, known = true == -math.inf, found.isfinite()
    assert spectrum.below_floor.item() == found.isnan().sum()
    assert not (known & zero).any(), "a number for a zero"
    assert not ((found == -math.inf) & ~zero).any(), "a zero that is none"
    assert known[true > true[0] + math.log(1e-12)].all()
    error = (found - true).abs()[known]
    assert (error <= stated[known] + 1e-14).all(), f"wrong by {error}, stated {stated[known]}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dtype == "float32" and not case.refused])
def test_what_is_cast_to_float32_is_known_as_well_as_float32(name):
    """By the dense route nothing is known below float32's floor, nor better than to half a unit in its last place."""
    _, model, x = made(name)
    spectrum = jacobian_spectrum(model, x, method="dense")
    eps = torch.finfo(torch.float32).eps
    logs, known = spectrum.log_singular_values, spectrum.log_singular_values.isfinite()
    assert (spectrum.log_error[known] >= eps / 2).all()
    assert (logs - logs[:, :1])[known].min() > math.log(eps)


# --- small shapes, and what is refused -------------------------------------------------------------------------------


def test_an_output_per_sample_without_an_axis():
    """y = w x + b of shape (samples,): J = w; with a read-out r of one number, |dL/dy| = |r| / sqrt(N)."""
    torch.manual_seed(0)
    model, x = Of(lambda a, x: a(x).squeeze(-1), nn.Linear(4, 1)), torch.randn(3, 4)
    row = gradient_flow(model, x).frame.iloc[0]
    ratio = row["log10_weight_gradient_norm"] - row["log10_error_signal_norm"]
    assert ratio == pytest.approx(math.log10(x.double().sum(0).norm() / 3**0.5), abs=1e-13)
    for how in HOWS:
        logs = jacobian_spectrum(model, x, **how).log_singular_values
        assert logs.shape == (3, 1)
        np.testing.assert_allclose(logs, model.parts[0].weight.detach().double().norm().log().item(), rtol=1e-13)


def test_a_model_that_returns_its_loss():
    """The loss is a scalar over the batch: gradients as any other's, and one line where a Jacobian is asked for."""
    torch.manual_seed(0)
    model, x = Of(lambda a, x: a(x).square().mean(), nn.Linear(4, 1)), torch.randn(3, 4)
    assert_flow_right(gradient_flow(model, x, loss=lambda value, _: value), flow_of(model, x, None, lambda v, _: v))
    with pytest.raises(ValueError, match=r"^jacobian_spectrum: `model` must keep the sample axis first, got output"):
        jacobian_spectrum(model, x)


REFUSED = {
    "negative chunk": ("chunk", lambda x: jacobian_spectrum(nn.Linear(4, 4), x, method="dense", chunk=-1)),
    "no chunk": ("chunk", lambda x: jacobian_spectrum(nn.Linear(4, 4), x, method="dense", chunk=0)),
    "half a chunk": ("chunk", lambda x: jacobian_spectrum(nn.Linear(4, 4), x, method="dense", chunk=2.5)),
    "half a chunk by any route": ("chunk", lambda x: jacobian_spectrum(nn.Linear(4, 4), x, chunk=2.5)),
    "scalar output and labels": ("model|y", lambda x: gradient_flow(Of(lambda a, x: a(x).mean(), nn.Linear(4, 1)), x,
                                                                    torch.arange(3))),
    "no layers": ("model", lambda x: gradient_flow(Of(lambda x: x), x)),
    "listed layers that are not called": ("model", lambda x: gradient_flow(ListsContainers(), x)),
    "weights to come": ("model", lambda x: gradient_flow(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)), x)),
    "samples of nothing": ("x", lambda x: jacobian_spectrum(nn.Linear(4, 4), x[:, None][:, :0])),
    "script module": ("model", lambda x: gradient_flow(torch.jit.trace(nn.Linear(4, 4), x), x)),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("annotations_unchecked")
def test_what_cannot_be_measured_is_refused_in_one_line(name):
    """The line names the call and the argument."""
    argument, call = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=rf"^(gradient_flow|jacobian_spectrum): `({argument})` must") as e:
        call(torch.randn(3, 4))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("scale", [0.0, 1 / 64, 64.0])
def test_a_spectrum_that_no_cotangent_survives(scale):
    """J = scale^200 I at every sample: 1e-361, 1e361, or exactly 0, which one pass back through the net cannot tell."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(200)))
    for layer in model:
        nn.init.eye_(layer.weight).data.mul_(scale)
    logs = jacobian_spectrum(model, torch.zeros(3, 2)).log_singular_values
    expected = 200 * math.log(scale) if scale else -math.inf
    np.testing.assert_allclose(logs, np.full((3, 2), expected), rtol=1e-12)


def hooked_on_tensors(x: Tensor, *chain: nn.Module, at: tuple[int, ...]) -> Tensor:
    """The chain's output, the gradient of some layers' outputs made ten times smaller by a hook."""
    for i, layer in enumerate(chain):
        x = layer(x)
        if i in at and x.requires_grad:
            x.register_hook(lambda gradient: 0.1 * gradient)
    return x


@pytest.mark.parametrize("at", [(5,), (195,), (5, 100, 195)])
@pytest.mark.parametrize("scale", [1 / 64, 64.0])
def test_a_hook_on_a_tensor_acts_once_however_deep(scale, at):
    """L = the sum of scale^200 x: |dL/dx| = scale^200 10^-hooks sqrt(6), far outside float64; J likewise."""
    layers = [nn.Linear(2, 2, bias=False) for _ in range(200)]
    for layer in layers:
        nn.init.eye_(layer.weight).data.mul_(scale)
    model = Of(lambda *chain_and_x: hooked_on_tensors(chain_and_x[-1], *chain_and_x[:-1], at=at), *layers)
    x = torch.zeros(3, 2)
    flow = gradient_flow(model, x, loss=lambda output, _: output.sum())
    decades = 200 * math.log10(scale) - len(at)
    assert flow.log10_input_gradient_norm == pytest.approx(decades + math.log10(6) / 2, rel=1e-12)
    behind = [sum(hook >= i for hook in at) for i in range(200)]
    unhooked = [i for i in range(200) if i not in at]  # at the others the error signal is before or after the hook
    expected = [(199 - i) * math.log10(scale) - behind[i] + math.log10(6) / 2 for i in unhooked]
    np.testing.assert_allclose(flow.frame["log10_error_signal_norm"][unhooked], expected, rtol=1e-12)
    np.testing.assert_allclose(jacobian_spectrum(model, x).log_singular_values, decades * math.log(10), rtol=1e-12)


MATRIX_FREE = ["no_grad block", "half detached", "reversal", "asks the batch's size", "noise", "functional dropout",
               "counts its calls", "moves a buffer", "surrogate aside", "float32 inside", "checkpointed layer",
               "convolutions"]


@pytest.mark.parametrize("name", MATRIX_FREE)
def test_matrix_free_values_are_right_or_refused(name):
    """Forward mode ignores no_grad, a sample alone has other noise: what differs from the backward pass is not used."""
    case, model, x = made(name)
    torch.manual_seed(1)
    true = np.linalg.svd(jacobians_of(model.eval(), x), compute_uv=False)
    torch.manual_seed(1)
    try:
        found = jacobian_spectrum(model, x, method="matrix_free")
    except ValueError as error:
        assert str(error).startswith("jacobian_spectrum: ") and "\n" not in str(error)
        return
    np.testing.assert_allclose(found.singular_values, true[:, :found.log_singular_values.shape[1]],
                               rtol=1e-7, atol=1e-5 if case.dtype == "float32" else 1e-12)


@pytest.mark.parametrize("draw", [random.random, np.random.random_sample])
@pytest.mark.usefixtures("annotations_unchecked")   # beartype draws from Python's generator
def test_draws_outside_torch_are_replayed(draw):
    """Layers are skipped by Python's or numpy's generator: every pass skips the same, and the states stay."""
    torch.manual_seed(0)
    model = Of(lambda *chain_and_x: skipping(draw, *chain_and_x), *(nn.Linear(4, 4) for _ in range(8)))
    x = torch.randn(3, 4)
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    flow, spectrum = gradient_flow(model, x, loss=square), jacobian_spectrum(model, x)
    assert_same(before, (random.getstate(), np.random.get_state()))  # noqa: NPY002
    assert flow.repeatable
    assert_flow_right(flow, flow_of(model, x, None, square))
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    assert_spectrum_right(spectrum, jacobians_of(model, x))


def skipping(draw: Callable[[], float], *chain_and_x: nn.Module | Tensor) -> Tensor:
    *chain, x = chain_and_x
    for layer in chain:
        x = x + torch.tanh(layer(x)) if draw() < 0.5 else x
    return x


def test_a_sparse_gradient_is_a_gradient():
    """Of an embedding with sparse=True: the norms are those of the same one without."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)), torch.arange(6).view(2, 3), None
    expected = gradient_flow(model, x, y).frame
    model[0].sparse = True
    assert gradient_flow(model, x, y).frame.equals(expected)


def test_complex_inputs_are_measured_in_complex128():
    """In single precision, as the model: the norms are those of the double one."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 5, dtype=torch.cfloat), torch.randn(3, 4, dtype=torch.cfloat)
    found = gradient_flow(model, x, loss=square)
    assert found.dtype == "float64"
    row = found.frame.iloc[0]
    twin = nn.Linear(4, 5, dtype=torch.cdouble)
    twin.load_state_dict(model.state_dict())
    square(twin(x.to(torch.cdouble)), None).backward()
    assert 10 ** row["log10_weight_gradient_norm"] == pytest.approx(twin.weight.grad.norm().item(), rel=1e-12)


def row_noise(h: Tensor) -> Tensor:
    return h * torch.rand_like(h)


@pytest.mark.parametrize("between", [lambda h: h * len(h), lambda h: h - h.detach().mean(0), row_noise])
def test_a_batch_that_memory_does_not_hold_is_measured_as_a_whole_or_not(between, monkeypatch):
    """Samples that are run a few at a time must be what they are in the batch; as many as are held have theirs."""
    monkeypatch.setattr(choice, "MEMORY_BUDGET", 2**13)
    torch.manual_seed(0)
    model, x = layers(between, torch.tanh), torch.randn(12, 4)
    for call in (jacobian_spectrum, layer_jacobian_spectra):
        with pytest.raises(ValueError, match=rf"^{call.__name__}: `model` must give a sample the same") as caught:
            call(model, x)
    samples = int(str(caught.value).rpartition("samples=")[2].rstrip("."))
    torch.manual_seed(1)
    found = jacobian_spectrum(model, x, samples=samples)
    torch.manual_seed(1)
    assert_spectrum_right(found, jacobians_of(model, x[:samples]))
