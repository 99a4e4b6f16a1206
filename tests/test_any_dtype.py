"""Models and losses that make, hold or ask for tensors of one dtype are measured in float64, or say in which.

Each is built twice, `real` being the dtype that its author wrote: None (torch's default) or float32 in the model that
is measured, float64 in the twin, which plain autograd differentiates.
"""

import functools
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from any_module import Of, rms_in_float32
from slow_twin import assert_flow_right, assert_spectrum_right, flow_of, jacobians_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from flowstudy import HighwayNet, compare, gradient_flow, jacobian_spectrum, layer_jacobian_spectra, trainability
from flowstudy.measure import gate_activity
from flowstudy.measure.models.precision.float64_mode import Float64Mode
from flowstudy.refusal import RefusalError


def square(output: Tensor, _y: object) -> Tensor:
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape)
    return (output.square() * weights).mean()


def between(make: Callable[[Tensor], Tensor]) -> nn.Module:
    """linear 4 -> 6, tanh, what is made of it, linear 6 -> 3"""
    return Of(lambda a, b, x: b(make(torch.tanh(a(x)))), nn.Linear(4, 6), nn.Linear(6, 3))


def filled(h: Tensor, real: torch.dtype | None) -> Tensor:
    out = torch.zeros(len(h), 6, dtype=real)
    out[:, :5] = h[:, 1:]
    return out


def added(h: Tensor, real: torch.dtype | None) -> Tensor:
    places = torch.arange(6).flip(0).expand(len(h), -1)
    return torch.empty(len(h), 6, dtype=real).fill_(0.1).scatter_add_(1, places, h)


def positions(real: torch.dtype | None) -> Tensor:
    return torch.sin(torch.arange(6, dtype=real) / 3.0 if real else torch.arange(6) / 3.0)


class Holding(nn.Module):
    """A layer, then a product with a matrix that is kept in a way of one's own."""

    def __init__(self, keep: Callable[[nn.Module, Tensor], None], use: Callable[[nn.Module, Tensor], Tensor],
                 real: torch.dtype | None):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.use = use
        keep(self, torch.randn(6, 6).to(real or torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.use(self, torch.tanh(self.a(x))))


def plain(model: nn.Module, matrix: Tensor) -> None:
    model.adjacency = matrix


def sparse(model: nn.Module, matrix: Tensor) -> None:
    model.adjacency = matrix.relu().to_sparse()


def nested(model: nn.Module, matrix: Tensor) -> None:
    model.tables = {"all": [(matrix, "name")]}


def partial(model: nn.Module, matrix: Tensor) -> None:
    model.mix = functools.partial(torch.mm, mat2=matrix)


def closure(model: nn.Module, matrix: Tensor) -> None:
    model.mix = lambda h: F.linear(h, matrix)


def buffer(model: nn.Module, matrix: Tensor) -> None:
    model.register_buffer("adjacency", matrix, persistent=False)


class Modes(nn.Module):
    """Of a Fourier neural operator: complex weights, and zeros that are filled."""

    def __init__(self, real: torch.dtype | None):
        super().__init__()
        self.kind = torch.complex128 if real else torch.complex64
        self.weight = nn.Parameter(torch.randn(4, 4, 3, dtype=torch.complex64).to(self.kind))

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.zeros(len(x), 4, 3, dtype=self.kind)
        modes[:] = torch.einsum("bi,iox->box", torch.fft.rfft(x.unsqueeze(1))[:, 0, :1].tile(4), self.weight)
        return torch.fft.irfft(modes, n=4).mean(2)


def recurrent(real: torch.dtype | None) -> nn.Module:
    def run(cell: nn.Module, out: nn.Module, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 5, dtype=real)
        state = h, h
        for t in range(x.shape[1]):
            state = cell(x[:, t:t + 1], state)
        return out(state[0])

    return Of(run, nn.LSTMCell(1, 5), nn.Linear(5, 3))


def one_hot(real: torch.dtype | None) -> nn.Module:
    return Of(lambda a, table, b, x: b(torch.tanh(a(x) + table(
        F.one_hot(torch.ones(len(x), dtype=torch.int64), 5).to(real or torch.float32)))),
        nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 3))


TABLE = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))  # of the module's file, as some repositories do
ARRAY = TABLE.numpy()

CASES: dict[str, Callable[[torch.dtype | None], nn.Module]] = {
    "state of zeros": recurrent,
    "positions": lambda real: between(lambda h: h + positions(real)),
    "positions through a layer": lambda real: Of(
        lambda a, t, b, x: b(torch.tanh(a(x) + t(positions(real)))), *map(nn.Linear, (4, 6, 6), (6, 6, 3))),
    "zeros that are filled": lambda real: between(lambda h: filled(h, real)),
    "empty that is added to": lambda real: between(lambda h: added(h, real)),
    "a number": lambda real: between(lambda h: h * torch.tensor(0.1, dtype=real)),
    "a condition": lambda real: between(lambda h: h * torch.where(
        h > 0, torch.tensor(0.3, dtype=real), torch.tensor(0.1, dtype=real)) if real else h * torch.where(
        h > 0, 0.3, 0.1)),
    "a share of a mask": lambda real: between(lambda h: h + ((h > 0).to(real) if real else h > 0) * 0.1),
    "a triangle": lambda real: between(lambda h: h @ torch.tril(torch.ones(6, 6, dtype=real))),
    "spaced": lambda real: between(lambda h: h + torch.linspace(-1, 1, 6, dtype=real)
                                   * torch.hann_window(6, dtype=real) + torch.full((6,), 0.1, dtype=real)),
    "the input's dtype": lambda real: between(lambda h: h + torch.ones(6, dtype=h.dtype) / 3),
    "of numpy": lambda real: between(lambda h: h @ torch.as_tensor(ARRAY, dtype=real)),
    "from numpy": lambda real: between(lambda h: h @ torch.from_numpy(ARRAY.astype(np.float64) if real else ARRAY)),
    "a table of the file's": lambda real: between(lambda h: F.linear(h, TABLE.to(real or TABLE.dtype))),
    "cast at the start": lambda real: Of(lambda a, b, x: b(torch.tanh(a(x.to(real or torch.float32)))),
                                         nn.Linear(4, 6), nn.Linear(6, 3)),
    "cast between": lambda real: between(lambda h: h.to(real) if real else h.float()),
    "cast by type": lambda real: between(lambda h: h.type(torch.DoubleTensor if real else torch.FloatTensor)),
    "one hot": one_hot,
    "plain attribute": lambda real: Holding(plain, lambda m, h: h @ m.adjacency, real),
    "sparse attribute": lambda real: Holding(sparse, lambda m, h: torch.sparse.mm(m.adjacency, h.T).T, real),
    "in a list in a dictionary": lambda real: Holding(nested, lambda m, h: h @ m.tables["all"][0][0], real),
    "in a partial": lambda real: Holding(partial, lambda m, h: m.mix(h), real),
    "in a closure": lambda real: Holding(closure, lambda m, h: m.mix(h), real),
    "buffer of no state": lambda real: Holding(buffer, lambda m, h: h @ m.adjacency, real),
    "Fourier": lambda real: Of(lambda a, modes, b, x: b(modes(torch.tanh(a(x)))),
                               nn.Linear(4, 4), Modes(real), nn.Linear(4, 3)),
    "hyper-network": lambda real: between(lambda h: F.linear(h, nn.init.eye_(nn.Linear(6, 6).to(real).weight))),
    "part in bfloat16": lambda real: Of(
        lambda a, b, c, x: c(b(torch.tanh(a(x)).to(real or torch.bfloat16)).to(real or torch.float32)),
        nn.Linear(4, 6), nn.Linear(6, 6).to(torch.bfloat16).to(real or torch.bfloat16), nn.Linear(6, 3)),
}


FEW = ("state of zeros", "Fourier")   # of which more is measured in `make test`


def made(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    pair = []
    for real in (None, torch.float64):
        torch.manual_seed(0)
        pair.append(CASES[name](real))
    return *pair, torch.randn(3, 4)


@pytest.mark.parametrize("name", CASES)
def test_what_a_model_makes_holds_and_asks_for_is_float64(name):
    """Every norm is that of the twin that was written in float64, to its rounding; the model stays what it is."""
    model, twin, x = made(name)
    dtypes = {key: value.dtype for key, value in model.state_dict().items()}
    assert_flow_right(gradient_flow(model, x, loss=square), flow_of(twin, x, None, square))
    assert dtypes == {key: value.dtype for key, value in model.state_dict().items()}
    assert torch.get_default_dtype() == torch.float32 and torch.zeros(1).dtype == torch.float32


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in CASES])
def test_spectra_of_what_a_model_makes(name):
    """The Jacobians are the twin's."""
    model, twin, x = made(name)
    assert_spectrum_right(jacobian_spectrum(model, x), jacobians_of(twin, x))


class Kernel(torch.autograd.Function):
    """Of float32 alone, as a kernel of one's own is."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        assert h.dtype == torch.float32
        ctx.save_for_backward(h)
        return torch.tanh(h)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


def test_a_model_that_insists_is_measured_in_its_own_dtype():
    """In float32, and every result says so; the numbers are those of tanh in float64 to float32's digits."""
    torch.manual_seed(0)
    a, b = nn.Linear(4, 6), nn.Linear(6, 3)
    model, twin = (Of(lambda a, b, x, f=f: b(f(a(x))), a, b) for f in (Kernel.apply, torch.tanh))
    x, y = torch.randn(24, 4), torch.arange(24) % 3
    for inputs in (x, x.double()):   # of either kind
        assert_flow_right(gradient_flow(model, inputs, y), flow_of(twin, x, y, F.cross_entropy), "float32")
    assert "The model computes in float32" in repr(gradient_flow(model, x, y))
    for method in ("auto", "product", "dense"):
        assert_spectrum_right(jacobian_spectrum(model, x, method=method, samples=24), jacobians_of(twin, x), "float32")
    layers = layer_jacobian_spectra(model, x)["log_singular_value"]
    np.testing.assert_allclose(layers, layer_jacobian_spectra(twin, x)["log_singular_value"], atol=1e-4)


@pytest.mark.slow
def test_a_model_that_insists_trains_in_its_own_dtype():
    """What remains of the task is what does with tanh in float64, to float32's digits."""
    torch.manual_seed(0)
    a, b, x, y = nn.Linear(4, 6), nn.Linear(6, 3), torch.randn(24, 4), torch.arange(24) % 3
    found, true = (trainability(Of(lambda a, b, x, f=f: b(f(a(x))), a, b), x, y, samples=24)
                   for f in (Kernel.apply, torch.tanh))
    assert (found.dtype, true.dtype) == ("float32", "float64")
    assert found.loss == pytest.approx(true.loss, rel=1e-5)
    np.testing.assert_allclose(found.remaining, true.remaining, atol=1e-3)


def test_casts_on_purpose_stay_where_the_model_runs():
    """An RMS norm in float32 beside a state of zeros in float64: measured as it computes, and `dtype` says so."""
    torch.manual_seed(0)
    model = between(lambda h: rms_in_float32(h + torch.zeros(6)))
    x = torch.randn(3, 4)
    twin = between(rms_in_float32)
    twin.load_state_dict(model.state_dict())
    assert_flow_right(gradient_flow(model, x, loss=square), flow_of(twin, x, None, square), "float32")


LOGITS, SHARES, LABELS = torch.randn(6, 5), torch.rand(6, 5), torch.arange(6) % 5
WEIGHT = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.7])
W64 = WEIGHT.double()
LOSSES: dict[str, tuple[object, object, Callable]] = {   # the loss, the targets, and the loss written in float64
    "weighted cross-entropy": (nn.CrossEntropyLoss(weight=WEIGHT), LABELS, nn.CrossEntropyLoss(weight=W64)),
    "weight in a function": (lambda o, y: F.cross_entropy(o, y, weight=WEIGHT), LABELS,
                             lambda o, y: F.cross_entropy(o, y, weight=W64)),
    "weight in a partial": (functools.partial(F.cross_entropy, weight=WEIGHT), LABELS,
                            functools.partial(F.cross_entropy, weight=W64)),
    "soft labels": ("cross_entropy", SHARES.softmax(1), F.cross_entropy),
    "mse": ("mse", LOGITS, F.mse_loss),
    "Huber": (nn.HuberLoss(), LOGITS, F.huber_loss),
    "smooth L1": (nn.SmoothL1Loss(), LOGITS, F.smooth_l1_loss),
    "BCE": (lambda o, y: nn.BCELoss()(torch.sigmoid(o), y), SHARES,
            lambda o, y: F.binary_cross_entropy(torch.sigmoid(o), y)),
    "BCE with logits": (nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=WEIGHT), SHARES,
                        nn.BCEWithLogitsLoss(weight=W64, pos_weight=W64)),
    "one hot": (lambda o, y: F.mse_loss(o, F.one_hot(y, 5).float()), LABELS,
                lambda o, y: F.mse_loss(o, F.one_hot(y, 5).double())),
    "Gaussian": (lambda o, y: F.gaussian_nll_loss(o, y, torch.full(y.shape, 0.3)), LOGITS,
                 lambda o, y: F.gaussian_nll_loss(o, y, torch.full(y.shape, 0.3, dtype=torch.float64))),
    "CTC": (ctc := lambda o, y: F.ctc_loss(o.log_softmax(1).unsqueeze(1), y[None, 1:3], torch.tensor([6]),
                                           torch.tensor([2])), LABELS, ctc),
    "pair": (pair := lambda o, y: ((o - y[0]) * y[1]).square().mean(), (LOGITS, WEIGHT), pair),
    "mapping": (mapping := lambda o, y: F.l1_loss(o, y["target"]), {"target": LOGITS}, mapping),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("annotations_unchecked")   # targets in a structure
def test_losses_and_targets_follow(name):
    """Weights of the loss and float targets are float64, and the caller's stay what they are."""
    loss, y, double = LOSSES[name]
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)), torch.randn(6, 4)
    y64 = tree_map(lambda value: value.double() if value.is_floating_point() else value, y)
    assert_flow_right(gradient_flow(model, x, y, loss=loss), flow_of(model, x, y64, double))
    if isinstance(loss, nn.Module):
        assert all(value.dtype == torch.float32 for value in loss.buffers())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", [*FEW, "one hot", "in a closure", "part in bfloat16"])
def test_trainability_of_what_a_model_makes(name, optimizer):
    """The kernel and the loss at the start are those of the twin; the trial trains the model as it is."""
    model, twin, _ = made(name)
    x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(2)), torch.arange(24) % 3
    found = trainability(model, x, y, optimizer=optimizer, samples=12, trial=2)
    true = trainability(twin.double(), x.double(), y, optimizer=optimizer, samples=12)
    assert found.dtype == "float64" and found.tried.best is not None
    assert found.loss == pytest.approx(true.loss, rel=1e-12)
    np.testing.assert_allclose(found.spectrum, true.spectrum, rtol=1e-6, atol=1e-12 * true.spectrum.max())


@pytest.mark.slow
def test_every_measurement_takes_them():
    """A net of gates behind a cast: all calls see the same values as of the net alone."""
    torch.manual_seed(0)
    net = HighwayNet(in_features=4, width=6, depth=4, out_features=3)
    model, x = Of(lambda net, x: net(x.float()), net), torch.randn(5, 4)
    models = {"cast": model, "alone": Of(lambda net, x: net(x), net)}
    both = compare(models, x).frame.groupby("model")["log10_error_signal_norm"]
    np.testing.assert_allclose(both.get_group("cast"), both.get_group("alone"), rtol=1e-12)
    np.testing.assert_allclose(gate_activity(model, x).frame["activity"], gate_activity(net, x).frame["activity"],
                               rtol=1e-12)
    for how in ({}, {"method": "matrix_free"}):
        np.testing.assert_allclose(jacobian_spectrum(model, x, **how).log_singular_values,
                                   jacobian_spectrum(net, x, **how).log_singular_values, rtol=1e-9)


def test_draws_are_the_models_own():
    """torch.randn without a dtype gives the numbers that the model draws from this random state, each time."""
    torch.manual_seed(0)
    model, x = between(lambda h: h * torch.randn(3, 6)), torch.randn(3, 4)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(gradient_flow(model, x, loss=square))
        assert found[-1].repeatable
    torch.manual_seed(1)
    assert_flow_right(found[0], flow_of(model, x, None, square))
    assert found[0].frame.equals(found[1].frame)


def test_other_threads_keep_their_dtypes():
    """While a model runs under the mode, another thread's zeros are float32: nothing of the process is changed."""
    inside, checked, seen = threading.Event(), threading.Event(), []

    def wait(h: Tensor) -> Tensor:
        seen.append(torch.zeros(1).dtype)
        inside.set()
        checked.wait(10)
        return h

    measuring = threading.Thread(target=gradient_flow, args=(between(wait), torch.randn(3, 4)))
    measuring.start()
    assert inside.wait(10)
    outside = torch.zeros(1).dtype, torch.arange(2.0).dtype, torch.get_default_dtype()
    checked.set()
    measuring.join()
    assert set(seen) == {torch.float64} and set(outside) == {torch.float32}


def test_a_model_that_fails_raises_what_it_raises_alone():
    """Not the last of three attempts at a cast: its words are in the refusal, and it is the refusal's cause."""
    model = between(lambda h: h @ torch.zeros(5, 5))
    with pytest.raises(RuntimeError) as alone:
        model(torch.randn(3, 4))
    with pytest.raises(RefusalError) as measured:
        gradient_flow(model, torch.randn(3, 4))
    assert str(alone.value) in str(measured.value)
    assert type(measured.value.__cause__) is RuntimeError and str(measured.value.__cause__) == str(alone.value)


def test_a_tensor_that_is_written_to_is_not_replaced():
    """Under the mode that casts, in-place functions write to the tensor that they were given, whatever its dtype."""
    coarse, wide = torch.zeros(3), torch.full((3,), 1 / 3, dtype=torch.float64)
    with Float64Mode(casts=True):
        coarse[:2] = wide[:2]
        coarse += wide
        view = coarse[2:]
        view.add_(1)
        wide.index_put_((torch.tensor([0]),), coarse[:1].clone())
    third = np.float32(1 / 3)
    np.testing.assert_allclose(coarse, [2 * third, 2 * third, third + 1], rtol=1e-7)
    assert wide[0] == coarse[0].double()
