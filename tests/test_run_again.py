"""Models that run parts of themselves again, or differentiate inside, or keep what Python cannot copy."""

import functools
import logging
import sys
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from any_module import Of
from slow_twin import assert_flow_right, assert_spectrum_right, flow_of, jacobians_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from flowstudy import gradient_flow, jacobian_spectrum, layer_jacobian_spectra, trainability
from flowstudy.measure.models import dense_jacobian
from flowstudy.measure.models.copies import float64_copy, own_copy


def square(output: Tensor, _y: object) -> Tensor:
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape)
    return (output.square() * weights).mean()


def three(function: Callable[..., Tensor]) -> nn.Module:
    return Of(function, nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3))


def cast_as(made: Tensor, like: Tensor, plain: bool) -> Tensor:
    """What the twin, which runs under no mode, has to write."""
    return made.to(like) if plain else made


# --- run again on the way back ---------------------------------------------------------------------------------------


def filled(layer: nn.Module, h: Tensor, plain: bool) -> Tensor:
    state = cast_as(torch.zeros(h.shape), h, plain)
    state[:] = h
    return torch.tanh(layer(state) + cast_as(torch.tensor(0.1, dtype=torch.float64 if plain else None), h, plain))


class Tanh(torch.autograd.Function):
    """Its backward fills zeros of the default dtype."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return torch.tanh(h)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        back = torch.zeros(h.shape)
        back[:] = gradient * (1 - torch.tanh(h) ** 2)
        return back


class Adjoint(torch.autograd.Function):
    """Five Euler steps of dh/dt = f(h) without a graph; the backward pass runs f again at the states kept."""

    @staticmethod
    def forward(ctx, f: Callable, h: Tensor, *weights: Tensor) -> Tensor:
        ctx.f, ctx.weights, ctx.states = f, weights, []
        with torch.no_grad():
            for _ in range(5):
                ctx.states.append(h)
                h = h + 0.1 * f(h)
        return h

    @staticmethod
    def backward(ctx, error: Tensor) -> tuple:
        total = [torch.zeros(w.shape) for w in ctx.weights]
        for h in reversed(ctx.states):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                step = h + 0.1 * ctx.f(h)
            error, *own = torch.autograd.grad(step, (h, *ctx.weights), error)
            total = [t + g for t, g in zip(total, own, strict=True)]
        return None, error, *total


def steps(f: Callable, h: Tensor) -> Tensor:
    for _ in range(5):
        h = h + 0.1 * f(h)
    return h


def equilibrium(u: nn.Module, w: nn.Module, out: nn.Module, x: Tensor) -> Tensor:
    """z = tanh(W z / 5 + U x), found without a graph; its gradient is that of the fixed point, by a hook."""
    def f(z: Tensor) -> Tensor:
        return torch.tanh(0.2 * w(z) + u(x))

    with torch.no_grad():
        z = torch.zeros(len(x), 6)
        for _ in range(60):
            z = f(z)
    z = f(z)
    if z.requires_grad:
        z0 = z.detach().requires_grad_()
        f0 = f(z0)

        def solve(gradient: Tensor) -> Tensor:
            total = gradient
            for _ in range(60):
                total = gradient + torch.autograd.grad(f0, z0, total, retain_graph=True)[0]
            return total

        z.register_hook(solve)
    return out(z)


def unrolled(u: nn.Module, w: nn.Module, out: nn.Module, x: Tensor) -> Tensor:
    z = x.new_zeros(len(x), 6)
    for _ in range(60):
        z = torch.tanh(0.2 * w(z) + u(x))
    return out(z)


def slope(a: nn.Module, b: nn.Module, c: nn.Module, x: Tensor, plain: bool) -> Tensor:
    """A net of the derivative of a net, as where one solves a differential equation."""
    x = x if x.requires_grad else x.requires_grad_()
    u = b(torch.tanh(a(x)))
    (du,) = torch.autograd.grad(u, x, cast_as(torch.ones(u.shape), u, plain), create_graph=True)
    return c(F.pad(du, (0, 2)))


def adjoint(a: nn.Module, m: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    return b(Adjoint.apply(lambda h: torch.tanh(m(h)), a(x), *m.parameters()))


# The model, and a twin of the same layers whose numbers are the same: what is run, without the way in which it is run.
AGAIN: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "checkpoint": (lambda a, m, b, x: b(checkpoint(lambda h: filled(m, h, False), a(x), use_reentrant=False)),
                   lambda a, m, b, x: b(filled(m, a(x), True))),
    "backward that fills": (lambda a, m, b, x: b(Tanh.apply(m(Tanh.apply(a(x))))),
                            lambda a, m, b, x: b(torch.tanh(m(torch.tanh(a(x)))))),
    "equilibrium": (equilibrium, unrolled),
    "adjoint": (adjoint, lambda a, m, b, x: b(steps(lambda h: torch.tanh(m(h)), a(x)))),
    "derivative": (lambda a, m, b, x: slope(a, m, b, x, False), lambda a, m, b, x: slope(a, m, b, x, True)),
}


def made(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, twin = map(three, AGAIN[name])
    twin.load_state_dict(model.state_dict())
    return model, twin, torch.randn(3, 4)


@pytest.mark.parametrize("name", AGAIN)
def test_what_runs_again_is_measured_as_what_it_computes(name):
    """The loss, the input's gradient and each weight's are those of the twin; calls on the way back are no layers."""
    model, twin, x = made(name)
    found = gradient_flow(model, x, loss=square)
    assert found.dtype == "float64"
    double, x64 = twin.double(), x.double().requires_grad_()
    square(double(x64.clone()), None).backward()
    assert found.log10_input_gradient_norm == pytest.approx(x64.grad.norm().log10().item(), abs=1e-12)
    rows = found.frame.drop_duplicates("module").set_index("module")["log10_weight_gradient_norm"]
    for at, p in double.named_parameters():
        if at.endswith("weight"):
            assert rows[at.removesuffix(".weight")] == pytest.approx(p.grad.norm().log10().item(), abs=1e-12)
    if name in ("checkpoint", "backward that fills"):   # the others call a layer again and again in the twin
        assert_flow_right(found, flow_of(twin, x, None, square))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("equilibrium", "adjoint")))
                                  for name in AGAIN])
def test_jacobians_of_what_runs_again(name):
    """Row by row the twin's."""
    model, twin, x = made(name)
    assert_spectrum_right(jacobian_spectrum(model, x), jacobians_of(twin, x))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", AGAIN)
def test_trainability_of_what_runs_again(name, optimizer, monkeypatch):
    """Kernel and steps are the twin's; with weights that have moved too, on which the backward pass runs again."""
    for room in ("will_it_train", "kernel.first_steps"):   # never float32, nor the curvature's rate, on a busy machine
        monkeypatch.setattr(sys.modules[f"flowstudy.trainability.{room}"], "PATIENCE", float("inf"))
    model, twin, _ = made(name)
    x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(2)), torch.arange(24) % 3
    found, true = (trainability(net, x, y, optimizer=optimizer, samples=12, trial=2) for net in (model, twin.double()))
    assert found.dtype == "float64" and found.tried.best is not None
    np.testing.assert_allclose(found.spectrum, true.spectrum, rtol=1e-6, atol=1e-12 * true.spectrum.max())
    np.testing.assert_allclose(found.learning_rate, true.learning_rate, rtol=1e-6)


@pytest.mark.parametrize("call", [gradient_flow, jacobian_spectrum, layer_jacobian_spectra,
                                  pytest.param(lambda model, x: trainability(model, x, torch.arange(3)),
                                               marks=pytest.mark.slow)])
def test_an_older_checkpoint_is_refused_with_a_way_out(call):
    """In one line that names the argument to pass, with which the model is measured."""
    old, new = (three(lambda a, m, b, x, old=old: b(checkpoint(m, a(x), use_reentrant=old))) for old in (True, False))
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"`model` must checkpoint with use_reentrant=False") as refused:
        call(old, x)
    assert "\n" not in str(refused.value)
    call(new, x)


@pytest.mark.parametrize("call", [jacobian_spectrum, layer_jacobian_spectra])
def test_a_selective_checkpoint_is_refused_where_one_backward_pass_is_not_enough(call):
    """What it keeps is given out once; the flow of gradients needs no more, and is that of the same model without."""
    def sparing(_context: object, operation: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
        kept = operation == torch.ops.aten.addmm.default
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, sparing)

    def part(a: nn.Module, m: nn.Module, b: nn.Module, x: Tensor, **options: object) -> Tensor:
        return b(checkpoint(lambda h: torch.tanh(m(h)), a(x), use_reentrant=False, **options))

    selective, plain = three(functools.partial(part, context_fn=contexts)), three(part)
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"allow several backward passes.* Leave context_fn out") as refused:
        call(selective, x)
    assert "\n" not in str(refused.value)
    call(plain, x)
    plain.load_state_dict(selective.state_dict())
    one, other = (gradient_flow(model, x, loss=square).frame for model in (selective, plain))
    np.testing.assert_allclose(one["log10_weight_gradient_norm"], other["log10_weight_gradient_norm"], atol=1e-12)


class Checkpoints(nn.Module):
    """As transformers' and diffusers' models do it: a flag that their methods set."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gradient_checkpointing = nn.Linear(4, 6), nn.Linear(6, 3), True

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.a, x, use_reentrant=True) if self.gradient_checkpointing and self.training else self.a(x)
        return self.b(torch.tanh(h))


def test_a_model_that_is_told_to_checkpoint_is_measured_without():
    """The gradients are the same, and the model's flag stays."""
    torch.manual_seed(0)
    model, x = Checkpoints(), torch.randn(3, 4)
    found = gradient_flow(model, x, loss=square)
    assert model.gradient_checkpointing is True
    model.gradient_checkpointing = False
    assert_flow_right(found, flow_of(model, x, None, square))


# --- copies ----------------------------------------------------------------------------------------------------------


class Keeps(nn.Module):
    """Two layers, and whatever `keep` puts beside them."""

    def __init__(self, keep: Callable[["Keeps"], None], use: Callable[["Keeps", Tensor], Tensor] | None = None):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(4, 6), nn.Linear(6, 3), nn.Parameter(torch.rand(6))
        self.use = use
        keep(self)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) * self.scale
        return self.b(h if self.use is None else self.use(self, h))


class Slotted:
    __slots__ = ("lock", "matrix")

    def __init__(self, matrix: Tensor):
        self.lock, self.matrix = threading.RLock(), matrix


def outside(inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda h: inner(h) + h


def keeps(**values: Callable[["Keeps"], object]) -> Callable[["Keeps"], None]:
    def keep(model: Keeps) -> None:
        for name, value in values.items():
            setattr(model, name, value(model))
    return keep


KEPT: dict[str, Callable[[], nn.Module]] = {
    "lock": lambda: Keeps(keeps(lock=lambda m: threading.Lock(), event=lambda m: threading.Event())),
    "lock in a list": lambda: Keeps(keeps(locks=lambda m: {"all": [threading.RLock()]})),
    "generator": lambda: Keeps(keeps(items=lambda m: (i for i in range(3)))),
    "module of Python's": lambda: Keeps(keeps(tools=lambda m: np, logger=lambda m: logging.getLogger("net"))),
    "stream": lambda: Keeps(keeps(log=lambda m: sys.stderr)),
    "cached product": lambda: Keeps(keeps(twice=lambda m: 2 * m.a.weight, before=lambda m: m.a(torch.ones(1, 4)))),
    "cached by a pass": lambda: Keeps(keeps(last=lambda m: None),
                                      lambda m, h: setattr(m, "last", h) or h),
    "slots": lambda: Keeps(keeps(held=lambda m: Slotted(torch.eye(6) / 3)),
                           lambda m, h: h @ m.held.matrix.to(h.dtype)),
    "own parameter in a function": lambda: Keeps(keeps(gate=lambda m: lambda h: h * m.scale), lambda m, h: m.gate(h)),
    "own parts in defaults": lambda: Keeps(
        keeps(gate=lambda m: lambda h, own=m, *, a=m.a: own.scale * a.forward(h[:, :4])), lambda m, h: m.gate(h)),
    "function of a function": lambda: Keeps(keeps(gate=lambda m: outside(lambda h: h * m.scale)),
                                            lambda m, h: m.gate(h)),
    "cache": lambda: Keeps(keeps(part=lambda m: functools.lru_cache(lambda name: getattr(m, name)),
                                 layer=lambda m: functools.lru_cache(m.get_submodule)),
                           lambda m, h: m.layer("a").forward(h[:, :4]) * m.part("scale")),
    "weak reference": lambda: Keeps(keeps(own=lambda m: weakref.ref(m)), lambda m, h: h * m.own().scale),
    "bound method": lambda: Keeps(keeps(twice=lambda m: m.a.forward), lambda m, h: h + m.twice(h[:, :4])),
    "old weight norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)),
    "old spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_whatever_a_model_keeps_it_is_copied(name):
    """The copy computes with its own weights; the model's get no gradient, and its cache stays."""
    torch.manual_seed(0)
    model, x = KEPT[name](), torch.randn(3, 4)
    kept = dict(vars(model))
    found = gradient_flow(model, x, loss=square)
    assert all(p.grad is None for p in model.parameters()) and dict(vars(model)) == kept
    double, x64 = own_copy("test", model).double(), x.double().requires_grad_()
    value = square(double(x64), None)
    value.backward()
    assert found.loss == pytest.approx(value.item(), rel=1e-13)
    assert found.log10_input_gradient_norm == pytest.approx(x64.grad.norm().log10().item(), abs=1e-12)
    for at, p in double.named_parameters():
        assert p.grad is not None, at
        if at in ("a.weight", "b.weight"):
            norm = found.frame.set_index("module").loc[at[0], "log10_weight_gradient_norm"]
            assert norm == pytest.approx(p.grad.norm().log10().item(), abs=1e-12)


def test_what_cannot_be_copied_is_shared():
    """A lock is the model's own; an event around one is the copy's; tensors never are the model's."""
    model = Keeps(keeps(lock=lambda m: threading.Lock(), event=lambda m: threading.Event(),
                        table=lambda m: [torch.ones(3)], twice=lambda m: 2 * m.a.weight))
    copied = float64_copy("test", model)
    assert copied.lock is model.lock and copied.event is not model.event
    assert copied.table[0].dtype == copied.twice.dtype == torch.float64 and copied.twice.is_leaf
    torch.testing.assert_close(copied.twice, 2 * copied.a.weight.detach(), rtol=0, atol=0)
    assert model.table[0].dtype == torch.float32 and model.twice.grad_fn is not None


def test_a_copy_that_computes_with_the_models_own_weights_is_refused():
    """Their gradient is the model's; reached through an attribute, the way out, they are the copy's."""
    def keep(model: Keeps) -> None:
        model.weak, model.strong = weakref.WeakValueDictionary(a=model.a), {"a": model.a}

    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"(?s)computes with the weights 'a.weight' of the model itself.*attributes"):
        gradient_flow(Keeps(keep, lambda m, h: m.weak["a"](h[:, :4])), x, loss=square)
    found = gradient_flow(Keeps(keep, lambda m, h: m.strong["a"](h[:, :4])), x, loss=square)
    assert found.frame["module"].tolist().count("a") == 2 and found.dtype == "float64"


class Never:
    def __deepcopy__(self, memo: dict) -> "Never":
        raise NotImplementedError("there is one of me\nand no other")


def test_what_will_not_be_copied_is_named():
    """In one line, with the attribute that holds it; deleted, the model is measured."""
    model = Keeps(keeps(only=lambda m: Never()))
    with pytest.raises(ValueError, match=r"^gradient_flow: `model` must be one .* got Keeps\.only") as at:
        gradient_flow(model, torch.randn(3, 4))
    assert "\n" not in str(at.value) and "there is one of me and no other" in str(at.value)
    del model.only
    gradient_flow(model, torch.randn(3, 4))


def test_sparse_gradients_train_by_what_takes_them():
    """sgd's kernel is that of the dense embedding; Adam, which torch has for dense ones alone, is refused."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randint(7, (12, 3)), torch.arange(12) % 3
    with pytest.raises(ValueError, match=r"^trainability: `optimizer` must be 'sgd' or 'momentum' .*sparse=False\.$"):
        trainability(model, x, y, optimizer="adam")
    found = trainability(model, x, y, samples=12)
    model[0].sparse = False
    np.testing.assert_allclose(found.spectrum, trainability(model, x, y, samples=12).spectrum)


# --- operations that take one row at a time --------------------------------------------------------------------------


class OfNumpy(torch.autograd.Function):
    """A backward pass outside torch: nothing runs it on several rows at once."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return torch.tanh(h)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.from_numpy(gradient.numpy() * (1 - np.tanh(ctx.saved_tensors[0].numpy()) ** 2))


class NanOfZero(torch.autograd.Function):
    """What is 0 / 0 for a gradient of 0, as of a norm of nothing."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * gradient / gradient


ONE_BY_ONE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "numpy": (lambda: Of(lambda a, b, x: b(OfNumpy.apply(a(x))), nn.Linear(4, 6), nn.Linear(6, 5)), (3, 4)),
    "channels last and group norm": (lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 3)).to(
        memory_format=torch.channels_last), (2, 2, 4, 4)),
    "distances": (lambda: Of(lambda a, x: torch.cdist(a(x).view(len(x), 3, 2), torch.ones(2, 2, dtype=x.dtype)),
                             nn.Linear(4, 6)), (3, 4)),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_rows_one_by_one(name):
    """By every route, what one backward pass after another gives."""
    build, shape = ONE_BY_ONE[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    for how in ({}, {"method": "dense"}, {"method": "dense", "chunk": 2}):
        assert_spectrum_right(jacobian_spectrum(model, x, **how), jacobians_of(model, x))


def test_nan_is_not_another_samples():
    """A backward pass that makes nan of the zeros of other samples mixes none: the values are W_2 W_1's."""
    torch.manual_seed(0)
    model, x = Of(lambda a, b, x: b(NanOfZero.apply(a(x))), nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(3, 4)
    a, b = (p.detach().double() for p in model.parameters() if p.ndim == 2)
    for method in ("auto", "dense"):
        found = jacobian_spectrum(model, x, method=method)
        torch.testing.assert_close(found.singular_values, torch.linalg.svdvals(b @ a).expand(3, -1))


def test_a_bar_is_shown_of_what_takes_long(monkeypatch, capfd):
    """On stderr, with the time left; of what is done at once there is none."""
    build, shape = ONE_BY_ONE["numpy"]
    jacobian_spectrum(build(), torch.randn(shape), method="dense")
    assert not capfd.readouterr().err
    monkeypatch.setitem(dense_jacobian.BAR, "delay", 0.0)
    jacobian_spectrum(build(), torch.randn(shape), method="dense")
    assert "rows of the Jacobian" in capfd.readouterr().err
