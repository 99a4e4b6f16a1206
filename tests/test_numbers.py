"""The numbers of `gradient_flow` and `jacobian_spectrum` are plain autograd's, whatever the model does in its forward.

Most models are rows of a table, each compared with the slow twin by every route and in every chunk; below it stand the
laws that need a test of their own: contexts, threads, weights without layers, parametrizations, what is refused.
"""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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
from slow_twin import assert_flow_right, assert_spectrum_right, flow_of, jacobians_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from flowstudy import gradient_flow, jacobian_spectrum
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


def scripted_layers() -> nn.Module:
    return layers(scripted, torch.tanh)


def proxied(h: Tensor) -> Tensor:
    return -h if hasattr(h, "node") or isinstance(h, torch.fx.Proxy) else torch.sin(h)


def asks_for_gradients(h: Tensor) -> Tensor:
    return torch.sin(h) * (3 if h.requires_grad else 1) * (2 if torch.is_grad_enabled() else 1)


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
    "hook on a tensor": Case(lambda: layers(hook_on_tensor)),
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
    "recurrent": Case(lambda: Of(lambda r, x: r(x)[0], nn.GRU(4, 3, batch_first=True)), (2, 3, 4)),
    "as many features as samples": Case(lambda: Of(lambda a, b, x: b((a(x).T * 2).sin().T), nn.Linear(4, 4),
                                                   nn.Linear(4, 4)), (4, 4)),
    "samples turned round twice": Case(lambda: Of(lambda a, b, x: b(torch.tanh(a(x.flip(0)).flip(0))),
                                                  nn.Linear(4, 5), nn.Linear(5, 3))),
    "samples on another axis": Case(lambda: layers(lambda h: h.T.contiguous().sin().T, torch.tanh)),
    "samples side by side": Case(lambda: layers(lambda h: (h.reshape(1, -1).sin() * 2).view(h.shape))),
    "scripted function": Case(scripted_layers),
    "vmap": Case(lambda: layers(torch.func.vmap(lambda h: torch.outer(h, h).sum(0).sin()))),
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
    "mixes in a sum of zero": Case(lambda: Of(lambda a, x: a(x) + a(x).mean() * torch.tensor([1.0, 1.0, -2.0]),
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
    torch.manual_seed(1)
    found = gradient_flow(model, x, loss=square)
    torch.manual_seed(1)
    assert_flow_right(found, flow_of(model, x, None, square), case.dtype, case.cancelled)
    torch.set_rng_state(before[0]["torch random state"])
    assert_same(before, (fingerprint(model), x))


HOWS = [{}, {"method": "dense"}, {"method": "dense", "chunk": 1}, {"chunk": 2}, {"mode": "train"}]


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


@pytest.mark.parametrize("method", ["auto", "dense"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_no_spectrum_where_samples_have_no_jacobian(name, method):
    """One line, not another model's numbers."""
    case, model, x = made(name)
    with pytest.raises(ValueError, match=f"^jacobian_spectrum: {case.refused}") as caught:
        jacobian_spectrum(model, x, method=method)
    assert "\n" not in str(caught.value)
