"""Will it train: the kernel is that of a slow twin, nothing is disturbed, and the verdict is what training shows."""
import copy
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES, Awkward, assert_same, batch, fingerprint
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional as F

import flowstudy as fs
from flowstudy.measure.gradients.losses import Objective
from flowstudy.measure.models.context import RandomState
from flowstudy.measure.models.inputs import Inputs
from flowstudy.trainability import will_it_train
from flowstudy.trainability.causes import collapsed
from flowstudy.trainability.constant import constant_loss
from flowstudy.trainability.half import Survival, survival
from flowstudy.trainability.kernel.decay import Decay
from flowstudy.trainability.kernel.krylov import tridiagonal_matrix, with_a_node_at_zero
from flowstudy.trainability.kernel.linearised import Linearised, pull_rows
from flowstudy.trainability.trials.trial import Trial, run_trial

TANGENT = sys.modules["flowstudy.trainability.kernel.tangent"]
FIRST_STEPS = sys.modules["flowstudy.trainability.kernel.first_steps"]
STEPS = (1, 30, 100, 1_000, 10_000)
SAMPLES = 12


# --- nets, all of them small ------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, CLASSES))


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(),
                         nn.Conv2d(4, 4, 2), nn.SiLU(), nn.Flatten(), nn.Linear(24, CLASSES))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8, bias=False),
                         nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES))


def frozen_layer() -> nn.Module:
    net = mlp()
    net[2].requires_grad_(False)
    return net


class Tied(nn.Module):
    """One matrix is used twice, and has one derivative."""

    def __init__(self):
        super().__init__()
        self.input, self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.readout = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.second(torch.tanh(self.first(self.input(x))))))


def tokens() -> nn.Module:
    """Outputs (sample, class, position)."""
    return nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, CLASSES),
                         Swapped())


class Swapped(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.transpose(1, 2)


NETS = {"mlp": mlp, "convolutions": convolutions, "batch norm": batch_norm, "frozen layer": frozen_layer, "tied": Tied,
        "tokens": tokens}


def task(name: str, samples: int = SAMPLES) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(7)
    x, y = batch(samples)
    return NETS[name](), x, torch.stack([y] * 4, 1).roll(1, 0) if name == "tokens" else y


# --- the slow twin ----------------------------------------------------------------------------------------------------


def jacobian(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, slice], Tensor]:
    """(output, parameter) by torch.func over all parameters, each one's columns, and the outputs (sample, ...)."""
    model = copy.deepcopy(model).double()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {name: b.clone() for name, b in model.named_buffers()}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        fresh = {name: b.clone() for name, b in state.items()}
        return torch.func.functional_call(model, fresh | values, (x.double(),))

    parts = torch.func.jacrev(outputs)(weights)
    z = outputs(weights).detach()
    columns, place = {}, 0
    for name in parts:
        size = weights[name].numel()
        columns[name], place = slice(place, place + size), place + size
    return torch.cat([part.reshape(z.numel(), -1) for part in parts.values()], 1), columns, z


def sample_gradients(jacobian_rows: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """(sample, parameter): what each sample's own loss, and it alone, asks of the weights."""
    gradients = []
    for i in range(len(z)):
        own = z[i:i + 1].clone().requires_grad_()
        slope, = torch.autograd.grad(F.cross_entropy(own, y[i:i + 1]), own)
        whole = torch.zeros_like(z)
        whole[i] = slope[0]
        gradients.append(jacobian_rows.T @ whole.flatten())
    return torch.stack(gradients)


def adams_divisor(gradients: Tensor, batch_size: int) -> np.ndarray:
    g = gradients.numpy()
    size = np.sqrt(g.mean(0)**2 + g.var(0, ddof=1) / batch_size)
    scale = 1 / (size + 1e-8 * size.max())
    middle = np.sort(scale)[(len(scale) - 1) // 2]
    return np.minimum(scale, 100 * middle)


class Twin:
    """K, its eigenvectors and what follows from them, all dense."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, adam: bool, batch_size: int = 64):
        rows, self.columns, self.z = jacobian(model, x)
        samples = len(self.z)
        shares = self.z.softmax(1) - F.one_hot(y, CLASSES).double().movedim(-1, 1)
        positions = self.z[0, 0].numel()
        residual = (shares / (samples * positions)).numpy()
        over = tuple(axis for axis in range(residual.ndim) if axis != 1)
        self.residual = (residual - residual.mean(axis=over, keepdims=True)).flatten()
        self.divided = adams_divisor(sample_gradients(rows, self.z, y), batch_size) if adam else np.ones(rows.shape[1])
        self.rows = rows.numpy()
        self.kernel = (self.rows * self.divided) @ self.rows.T
        self.values, vectors = np.linalg.eigh(self.kernel)
        self.parts = (vectors.T @ self.residual)**2
        self.samples, self.positions = samples, positions

    def remaining(self, steps: float) -> float:
        rates = np.maximum(self.values, 0) / self.values[-1]
        return float((self.parts * np.exp(-2 * steps * rates)).sum() / self.parts.sum())

    def share(self, layer: str) -> float:
        learnt = (self.rows.T @ self.residual)**2 * self.divided
        own = sum(learnt[columns].sum() for name, columns in self.columns.items() if name.rpartition(".")[0] == layer)
        return own / learnt.sum()

    def sharpness(self) -> float:
        """Largest eigenvalue of H K, H = d^2 L / d z^2, made by autograd."""
        z = self.z
        labels = torch.zeros(z[:, 0].shape, dtype=torch.long)
        curvature = torch.autograd.functional.hessian(lambda v: F.cross_entropy(v.view_as(z), labels), z.flatten())
        return float(np.linalg.eigvals(curvature.numpy() @ self.kernel).real.max())


# Eigenvalues are known to 1e-16 of the largest, which 10^4 steps of rate 2 make 2e-12 in the exponent; the rest is the
# rounding of sums of some thousand terms.
ROUNDING = 1e-9


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", NETS)
def test_the_kernel_is_that_of_a_slow_twin(name, optimizer):
    model, x, y = task(name)
    twin = Twin(model, x, y, optimizer == "adam")
    found = fs.trainability(model, x, y, optimizer=optimizer, steps=STEPS)
    assert found.route == "rows" and found.dtype == "float64"
    for steps in STEPS:
        assert math.isclose(found.remaining[steps], twin.remaining(steps), abs_tol=ROUNDING)
        assert found.remaining_error[steps] == 0
    np.testing.assert_allclose(found.spectrum, np.maximum(twin.values, 0)[::-1] / twin.samples,
                               atol=1e-12 * twin.values[-1])
    assert math.isclose(found.loss, F.cross_entropy(twin.z, y).item(), rel_tol=1e-12)
    for layer, share in found.by_layer.items():
        assert math.isclose(share, twin.share(layer), abs_tol=ROUNDING)
    assert math.isclose(found.by_layer.sum(), 1, rel_tol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_learning_rate_and_condition_are_those_of_dense_eigenvalues(name, monkeypatch):
    """2 over the largest eigenvalue of H K; momentum m makes it 1 + m times as large; Adam has none.

    The power iteration stops when a step changes it by 1e-9; with a gap of 1 % to the next eigenvalue that leaves 5e-8.
    """
    model, x, y = task(name)
    twin = Twin(model, x, y, adam=False)
    found = fs.trainability(model, x, y)
    assert math.isclose(found.kernel.sharpness, twin.sharpness(), rel_tol=1e-6)
    monkeypatch.setattr(FIRST_STEPS, "PATIENCE", 0.0)   # no time for steps: the curvature is all there is
    for optimizer, factor in (("sgd", 2.0), ("momentum", 3.8)):
        found = fs.trainability(model, x, y, optimizer=optimizer)
        assert math.isclose(found.learning_rate, factor / twin.sharpness(), rel_tol=1e-6)
        assert found.rate_by == "curvature"
    assert math.isnan(fs.trainability(model, x, y, optimizer="adamw").learning_rate)
    smallest = twin.values[0]
    if smallest > 1e-9 * twin.values[-1]:
        assert math.isclose(found.condition, twin.values[-1] / smallest, rel_tol=1e-5)
    else:   # rounding alone
        assert found.condition > 1e9


def test_steps_to_a_share_are_where_it_is_left():
    model, x, y = task("mlp")
    twin, found = Twin(model, x, y, adam=False), fs.trainability(model, x, y)
    for share in (0.9, 0.5, 0.1):
        steps = brentq(lambda t, share=share: twin.remaining(t) - share, 0, 1e9)
        assert math.isclose(found.steps_to(share), steps, rel_tol=1e-6)
    never = Decay(np.array([1.0, 0.0]), np.array([0.4, 0.6]))
    assert never.steps_to(0.5) == math.inf and never.steps_to(1.0) == 0
    assert math.isclose(never.steps_to(0.8), -math.log(0.5) / 2, rel_tol=1e-12)
    for share in (0, 1, -1):
        with pytest.raises(ValueError, match=r"steps_to: `share` must be between 0 and 1, got"):
            found.steps_to(share)


# --- the longer route -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", NETS)
def test_few_products_bound_what_remains(name, optimizer, monkeypatch):
    """Gauss' rule from below at any number, and Gauss-Radau's from above as soon as the largest eigenvalue is known."""
    model, x, y = task(name)
    twin = Twin(model, x, y, optimizer == "adam")
    monkeypatch.setattr(TANGENT, "MOST_ROWS", 0)
    monkeypatch.setattr(TANGENT, "KNOWN", 0.0)
    errors = []
    for products in (1, 6, 20):
        monkeypatch.setattr(TANGENT, "KRYLOV_STEPS", products)
        found = fs.trainability(model, x, y, optimizer=optimizer, steps=STEPS)
        assert found.route == "krylov" and math.isnan(found.condition)
        for steps in STEPS:
            low, high = found.remaining[steps], found.remaining[steps] + found.remaining_error[steps]
            assert low - ROUNDING <= twin.remaining(steps)
            if products == 20:
                assert twin.remaining(steps) <= high + ROUNDING
        errors.append(found.remaining_error[1_000])
    assert errors[-1] <= errors[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", NETS)
def test_as_many_products_as_outputs_know_all(name, optimizer, monkeypatch):
    model, x, y = task(name, samples=6)
    twin = Twin(model, x, y, optimizer == "adam")
    monkeypatch.setattr(TANGENT, "MOST_ROWS", 0)
    monkeypatch.setattr(TANGENT, "KRYLOV_STEPS", 200)
    monkeypatch.setattr(TANGENT, "KNOWN", 0.0)
    found = fs.trainability(model, x, y, optimizer=optimizer, steps=STEPS)
    for steps in STEPS:
        assert math.isclose(found.remaining[steps], twin.remaining(steps), abs_tol=1e-7)
        assert found.remaining_error[steps] == 0
    for layer, share in found.by_layer.items():
        assert math.isclose(share, twin.share(layer), abs_tol=ROUNDING)
    if optimizer == "sgd":
        assert math.isclose(found.kernel.sharpness, twin.sharpness(), rel_tol=1e-6)


# --- what makes no difference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("scale", [1 / 255, 255.0])
def test_under_batch_norm_the_scale_of_inputs_makes_no_difference(scale, optimizer):
    """Not to its derivative by the first weights either: inputs grow, and what they are divided by.

    But for the 1e-20 that is added to a variance of at least 1e-6.
    """
    model, x, y = task("batch norm")
    model[1].eps = 1e-20
    one, other = (fs.trainability(model, z, y, steps=STEPS, optimizer=optimizer) for z in (x, x.double() * scale))
    np.testing.assert_allclose(one.remaining, other.remaining, atol=ROUNDING)
    np.testing.assert_allclose(one.by_layer, other.by_layer, atol=ROUNDING)


@pytest.mark.parametrize("name", NETS)
def test_the_order_of_samples_makes_no_difference(name):
    model, x, y = task(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    one, other = fs.trainability(model, x, y, steps=STEPS), fs.trainability(model, x[order], y[order], steps=STEPS)
    np.testing.assert_allclose(one.remaining, other.remaining, atol=ROUNDING)
    np.testing.assert_allclose(one.by_layer, other.by_layer, atol=ROUNDING)
    assert math.isclose(one.kernel.sharpness, other.kernel.sharpness, rel_tol=1e-6)


def test_sorted_data_are_read_as_shuffled_ones():
    """The kernel's samples are drawn from all: the first 48 of sorted data are often of one class."""
    x, _ = batch(200)
    y = x[:, :CLASSES].argmax(1)
    order = y.argsort(stable=True)
    torch.manual_seed(0)
    found = fs.trainability(mlp(), x[order], y[order], trial=40, optimizer="adam")
    assert len(found.kernel.eigenvalues) == 48 * CLASSES and found.constant_loss > 1.5
    assert found.verdict.kind == "trains"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("trained_mode", [True, False])
def test_nothing_is_disturbed_and_all_is_repeatable(optimizer, trained_mode, monkeypatch):
    """Running statistics, dropout, modes, gradients, hooks and the global random states, on both routes and a trial."""
    torch.manual_seed(0)
    model = Awkward().train(trained_mode)
    x, y = batch(20)
    before = fingerprint(model)
    for rows in (1024, 0):
        monkeypatch.setattr(TANGENT, "MOST_ROWS", rows)
        one, other = (fs.trainability(model, x, y, optimizer=optimizer, trial=4, batch_size=8) for _ in range(2))
        assert_same(before, fingerprint(model))
        assert one.remaining.equals(other.remaining) and one.by_layer.equals(other.by_layer)
        assert one.trial.equals(other.trial) and str(one.verdict) == str(other.verdict)
    assert one.by_layer["body.4"] == 0   # it is frozen
    assert set(one.by_layer.index) == {"body.0", "body.1", "body.4", "readout"}


def test_the_frame_and_the_picture_have_a_row_for_each_layer():
    model, x, y = task("frozen layer")
    found = fs.trainability(model, x, y, trial=4)
    frame = found.frame
    assert frame.share_of_learning[frame.module == "2"].item() == 0
    assert math.isclose(frame.share_of_learning.sum(), 1, rel_tol=1e-12)
    assert repr(found) == f"Trainability by sgd: {found.verdict}"
    assert found.trial.shape[0] == 8


# --- the loss of constant outputs -------------------------------------------------------------------------------------


def by_descent(loss, outputs: Tensor, y: Tensor) -> float:
    """Newton's method would do; this is Adam, for long."""
    constant = torch.zeros(1, *outputs.shape[1:2], *[1] * (outputs.ndim - 2), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([constant], lr=0.05)
    for _ in range(1_500):
        optimizer.zero_grad()
        value = loss(constant.expand_as(outputs), y)
        value.backward()
        optimizer.step()
    return value.item()


@pytest.mark.parametrize("loss, outputs, y", [
    (F.cross_entropy, (30, 4), torch.arange(30) % 3),                  # the last class has no label
    (F.cross_entropy, (10, 4, 5), torch.arange(50).view(10, 5) % 4),   # tokens
    (F.cross_entropy, (10, 4, 5), torch.arange(50).view(10, 5).where(torch.arange(5) > 1, torch.tensor(-100)) % 4),
    (F.cross_entropy, (30, 4), torch.arange(120.0).view(30, 4).sin().softmax(1).double()),
    (F.mse_loss, (30, 2), torch.arange(60.0).view(30, 2).double().sin() + 3),
    (F.mse_loss, (10, 2, 3), torch.arange(60.0).view(10, 2, 3).double().sin()),
    (F.mse_loss, (30,), torch.arange(30.0).double().sin()),
])
def test_constant_outputs_reach_the_entropy_of_labels_and_the_variance_of_targets(loss, outputs, y):
    """Within what 1,500 steps leave; a search that is told nothing but the function finds the same."""
    if y.dtype == torch.long and (y < 0).any() and not (y == -100).any():
        y = y.where(y >= 0, torch.tensor(-100))
    outputs = torch.zeros(outputs, dtype=torch.float64)
    name = {F.cross_entropy: "cross_entropy", F.mse_loss: "mse"}[loss]
    lowest = constant_loss(name, outputs, y)
    assert math.isclose(lowest, by_descent(loss, outputs, y), rel_tol=3e-4)
    assert math.isclose(lowest, constant_loss(loss, outputs, y), rel_tol=1e-6)
    if outputs.shape == (30, 4) and y.dtype == torch.long:
        assert math.isclose(lowest, math.log(3), rel_tol=1e-12)
    if outputs.shape == (30, 2):
        assert math.isclose(lowest, y.var(0, correction=0).mean().item(), rel_tol=1e-12)


def test_a_loss_that_has_no_derivative_has_no_constant():
    outputs, y = torch.zeros(5, 2), torch.zeros(5, 2)
    assert math.isnan(constant_loss(lambda output, y: (output > y).double().mean(), outputs, y))
    assert math.isnan(constant_loss(lambda output, y: output.sum() * math.nan, outputs, y))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, message", [
    ({"y": None}, "`y` must be given"),
    ({"y": [0, 1]}, "`y` must be a tensor of targets, got list"),
    ({"y": torch.zeros(9, dtype=torch.long)}, "`y` must differ between samples, got 9 times the same"),
    ({"y": torch.arange(9)}, "`y` must hold labels from 0 to 4, the model's outputs, got 0 to 8"),
    ({"y": torch.arange(8)}, "`y` must have one target per sample"),
    ({"loss": "crossentropy"}, "`loss` must be one of cross_entropy, mse, output or a function"),
    ({"loss": "output"}, "`loss` must be of outputs and targets that can be told apart, got 'output'"),
    ({"optimizer": "adma"}, "`optimizer` must be one of sgd, momentum, adam, adamw, got 'adma'. Did you mean 'adam'"),
    ({"samples": 1}, "`samples` must be an integer of at least 2, got 1"),
    ({"trial": -1}, "`trial` must be an integer of at least 0, got -1"),
    ({"trial": 1.5}, "`trial` must be an integer of at least 0, got 1.5"),
    ({"x": torch.zeros(9)}, "`x` must be a batch"),
    ({"x": torch.full((9, FEATURES), math.nan)}, "`x` must be finite"),
])
@pytest.mark.parametrize("call", ["trainability", "assert_trainable"])
def test_what_is_refused(call, change, message, annotations_unchecked):
    """In the name of the function that was called, and before anything is computed."""
    x, y = batch()
    given = {"model": mlp(), "x": x, "y": y} | change
    with pytest.raises(ValueError, match=f"^{call}: {message}"):
        getattr(fs, call)(**given)


def test_steps_are_positive(annotations_unchecked):
    for steps in ((), (0,), (10, -1)):
        with pytest.raises(ValueError, match=r"^trainability: `steps.*` must (hold at least 1|be positive)"):
            fs.trainability(mlp(), *batch(), steps=steps)


class TwoTensors(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def test_models_that_cannot_learn_are_refused():
    x, y = batch()
    with pytest.raises(ValueError, match=r"^trainability: `model` must have a parameter that requires a gradient"):
        fs.trainability(mlp().requires_grad_(False), x, y)
    with pytest.raises(ValueError, match=r"^trainability: `model` must return one tensor, got tuple"):
        fs.trainability(TwoTensors(), x, y)
    with pytest.raises(ValueError, match=r"^trainability: `model` must return one tensor, got tuple"):
        fs.trainability(TwoTensors(), x, y, loss=lambda output, y: F.cross_entropy(output[0], y))
    with pytest.raises(ValueError, match=r"^trainability: `loss` must return a tensor of shape"):
        fs.trainability(mlp(), x, y, loss=lambda output, y: F.cross_entropy(output, y, reduction="none"))


# --- the verdict is what training shows -------------------------------------------------------------------------------


class CutOff(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU())
        self.head = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).detach())


class CutOffDecoder(CutOff):
    """The features are learnt by no one, though the head after them is: no_grad() stands for a forgotten one."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(x)
        return self.head(features)


def deep(layers: int, activation: type[nn.Module] = nn.ReLU, norm: type[nn.Module] | None = None) -> nn.Module:
    body = [m for _ in range(layers) for m in (nn.Linear(100, 100), *([norm(100)] if norm else []), activation())]
    return nn.Sequential(nn.Linear(64, 100), *([norm(100)] if norm else []), activation(), *body, nn.Linear(100, 10))


def digits(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16 * scale, torch.tensor(data.target)


def noise(samples: int = 64, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, *(shape or (64,)), generator=generator), torch.arange(samples) % 10


def zero_head() -> nn.Module:
    net = deep(1)
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    return net


def all_dead() -> nn.Module:
    net = deep(1)
    nn.init.constant_(net[2].bias, -100.0)
    return net


class Collapsed(nn.Module):
    """What the samples have in common is all that passes the bottleneck."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(64, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.head(h.mean(0, keepdim=True).expand_as(h))


def shrinking_images() -> nn.Module:
    layers = [m for c in (1, *[16] * 11) for m in (nn.Conv2d(c, 16, 3), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def tanh_of_large_weights() -> nn.Module:
    return fs.initialize(deep(0, nn.Tanh), "glorot_normal")


def vgg() -> nn.Module:
    layers, channels = [], 1
    for width in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64, 0):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()] if width else [
            nn.MaxPool2d(2)]
        channels = width or channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


class SqueezeAndExcitation(nn.Module):
    def __init__(self, channels: int = 16):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn(self.conv(x)))
        return x + h * torch.sigmoid(self.up(torch.relu(self.down(h.mean((2, 3), keepdim=True)))))


def squeezed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *[SqueezeAndExcitation() for _ in range(12)],
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class LanguageModel(nn.Module):
    """Twelve blocks on a token and a position embedding, which are of one position each or of one sample's too."""

    def __init__(self, batched: bool):
        super().__init__()
        self.wte, self.wpe, self.batched = nn.Embedding(32, 64), nn.Embedding(16, 64), batched
        self.blocks = nn.ModuleList(nn.ModuleList([nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)])
                                    for _ in range(12))
        self.ln_f, self.head = nn.LayerNorm(64), nn.Linear(64, 32, bias=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, 0, 0.02 / (24**0.5 if name.endswith(".2.weight") else 1))

    def forward(self, t: Tensor) -> Tensor:
        at = torch.arange(t.shape[1])
        x = self.wte(t) + self.wpe(at[None].expand_as(t) if self.batched else at)
        for norm, up, down in self.blocks:
            x = x + down(F.gelu(up(norm(x))))
        return self.head(self.ln_f(x)).transpose(1, 2)


def next_tokens() -> tuple[Tensor, Tensor]:
    t = torch.randint(32, (16, 16), generator=torch.Generator().manual_seed(0))
    return t, t.roll(-1, 1)


CANNOT = {
    "encoder cut off": lambda: (CutOff(), *noise()),
    "decoder cut off": lambda: (CutOffDecoder(), *noise()),
    "inputs / 255": lambda: (fs.initialize(deep(6), "he_normal"), *digits(1 / 255)),
    "shrinking images": lambda: (shrinking_images(), *noise(32, 1, 28, 28)),
    "inputs / 255^2": lambda: (fs.initialize(deep(6), "he_normal"), *digits(1 / 255**2)),
    "constant features": lambda: (deep(1), torch.ones(64, 64), noise()[1]),
    "inputs of 0": lambda: (deep(1), torch.zeros(64, 64), noise()[1]),
    "all units dead": lambda: (all_dead(), *noise()),
    "a bottleneck that tells none apart": lambda: (Collapsed(), *noise()),
}
TRAIN = {
    "zero head": lambda: (zero_head(), *noise(200)),
    "default ReLU": lambda: (deep(3), *noise(100)),
    "digits": lambda: (fs.initialize(deep(6), "he_normal"), *digits()),
    "LayerNorm": lambda: (deep(3, nn.GELU, nn.LayerNorm), *noise()),
    "tanh": lambda: (tanh_of_large_weights(), *noise()),
    "linear": lambda: (nn.Linear(64, 10), *digits()),
    "BatchNorm": lambda: (deep(19, nn.ReLU, nn.BatchNorm1d), *noise(100)),
    "inputs * 255": lambda: (deep(19, nn.ReLU, nn.BatchNorm1d), noise(100)[0] * 255, noise(100)[1]),
    "VGG16 with BatchNorm": lambda: (vgg(), *noise(32, 1, 32, 32)),
    "squeeze and excitation": lambda: (squeezed(), *noise(32, 3, 8, 8)),
    "position embedding": lambda: (LanguageModel(False), *next_tokens()),
    "its own batch": lambda: (LanguageModel(True), *next_tokens()),
    "convolutions": lambda: (nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(3),
                                           nn.Flatten(), nn.Linear(72, 10)), *noise(64, 1, 8, 8)),
}


SLOW = ("inputs / 255", "inputs / 255^2", "shrinking images", "digits", "default ReLU", "BatchNorm", "inputs * 255",
        "VGG16 with BatchNorm", "squeeze and excitation", "position embedding", "its own batch")


def by_name(cases: dict) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in cases]


@pytest.mark.parametrize("name", by_name(CANNOT))
def test_none_that_cannot_learn_passes(name):
    torch.manual_seed(0)
    model, x, y = CANNOT[name]()
    with pytest.raises(fs.UntrainableError) as caught:
        fs.assert_trainable(model, x, y)
    assert str(caught.value) == f"assert_trainable: {caught.value.verdict}"
    assert caught.value.verdict.kind == "does not train"
    if "cut off" in name:
        assert "cut off" in caught.value.verdict.cause and "'encoder.0'" in caught.value.verdict.cause
    if "255" in name or "of 0" in name:
        assert "scale of the inputs" in caught.value.verdict.cause
    if "dead" in name:
        assert "dead units" in caught.value.verdict.cause


@pytest.mark.slow
@pytest.mark.parametrize("name", by_name(TRAIN))
def test_those_that_learn_pass(name):
    torch.manual_seed(0)
    found = fs.assert_trainable(*TRAIN[name]())
    assert found.verdict.kind in ("trains", "slow")
    assert found.tried.best.loss < 0.9 * found.constant_loss


class Residual(nn.Module):
    """x + scale * branch(x), or the branches alone."""

    def __init__(self, layers: int, scale: float, skips: bool = True, gain: float = 1.0):
        super().__init__()
        self.input, self.readout = nn.Linear(64, 50), nn.Linear(50, 10)
        self.branches = nn.ModuleList(nn.Linear(50, 50) for _ in range(layers))
        self.scale, self.skips = scale, skips
        for layer in self.branches:
            nn.init.normal_(layer.weight, std=gain * (2 / 50)**0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.input(x)
        for layer in self.branches:
            h = h * self.skips + self.scale * torch.relu(layer(h))
        return self.readout(h)


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()


ADVICE = {   # the case, the cause and what the advice says, and the case that heeds it
    "dead units": (lambda: (all_dead(), *noise()), "fs.initialize",
                   lambda: (fs.initialize(all_dead(), "he_normal"), *noise())),
    "scale of the inputs": (CANNOT["inputs / 255"], "Standardise",
                            lambda: (CANNOT["inputs / 255"]()[0], standardised(digits(1 / 255)[0]), digits()[1])),
    "scale of the outputs": (lambda: (Residual(60, 1.0), *digits()), "residual branches, down",
                             lambda: (Residual(60, 0.1), *digits())),
    "inputs collapse": (lambda: (Residual(60, 1.0, skips=False), *digits()), "skip connections",
                        lambda: (Residual(60, 0.1), *digits())),
}


@pytest.mark.slow
@pytest.mark.parametrize("cause", ADVICE)
def test_advice_that_is_heeded_makes_the_net_train(cause):
    case, advice, heeded = ADVICE[cause]
    torch.manual_seed(0)
    verdict = fs.trainability(*case(), trial=100).verdict
    assert verdict.kind != "trains"
    assert cause in verdict.cause and advice in verdict.advice
    torch.manual_seed(0)
    assert fs.trainability(*heeded(), trial=100).verdict.kind == "trains"


class PostNorm(nn.Module):
    """A transformer that reads the rows of an image, and normalises the sums of its branches."""

    def __init__(self, layers: int, width: int = 32):
        super().__init__()
        self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.place = nn.Parameter(0.5 * torch.randn(8, width))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, "gelu", batch_first=True)
                                    for _ in range(layers))
        for block in self.blocks:
            for weight in (block.self_attn.in_proj_weight, block.self_attn.out_proj.weight, block.linear1.weight,
                           block.linear2.weight):
                nn.init.xavier_normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(-1, 8, 8)) + self.place
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


@pytest.mark.slow
def test_where_sums_are_normalised_a_warm_up_makes_a_large_rate_train():
    torch.manual_seed(0)
    model, (x, y) = PostNorm(6), digits()
    x, rate = standardised(x), (1e-2,)
    found = fs.trainability(model, x, y, optimizer="adam", trial=100, rates=rate)
    assert found.verdict.kind == "does not train" and found.trial.learning_rate.tolist() == list(rate)
    assert "no warm-up" in found.verdict.cause and "grow linearly over the first steps (50" in found.verdict.advice
    heeded = run_trial("test", model, x, y, "cross_entropy", optimizer="adam", steps=100, warm_up=50, rates=rate)
    assert heeded.best.loss < 0.6 * found.constant_loss < found.tried.best.loss


@pytest.mark.parametrize("trial, half", [(1, 1), (5, 2)])
def test_the_warm_up_that_is_told_is_the_one_that_was_tried(trial, half, monkeypatch):
    """Half of the trial's steps and one at least, where sums are normalised and no constant rate learns."""
    asked, told, verdict = [], [], will_it_train.verdict_of_readings

    def tried(*given: object, **options: object) -> Trial:
        asked.append(options.get("warm_up", 0))
        return run_trial(*given, **options)

    monkeypatch.setattr(will_it_train, "normalises_sums", lambda _flow: True)
    monkeypatch.setattr(will_it_train, "learns", lambda *_: len(asked) > 1)
    monkeypatch.setattr(will_it_train, "run_trial", tried)
    monkeypatch.setattr(will_it_train, "verdict_of_readings", lambda *given: told.extend(given[-1]) or verdict(*given))
    fs.trainability(mlp(), *batch(8), samples=4, trial=trial, rates=(0.1,), progress=False)
    assert asked == [0, half] and told[0].name == "no warm-up"
    assert f"over its first {half} steps" in told[0].seen and f"({half} did in the trial)" in told[0].advice


@pytest.mark.slow
def test_softmax_before_cross_entropy_is_named():
    torch.manual_seed(0)
    verdict = fs.trainability(nn.Sequential(*deep(12, nn.Sigmoid), nn.Softmax(1)), *noise()).verdict
    assert "softmax before cross-entropy" in verdict.cause and "logits" in verdict.advice


# --- formats of 16 bits, and another mode -----------------------------------------------------------------------------


def small_loss(factor: float):
    return lambda output, y: factor * F.cross_entropy(output, y)


def test_a_loss_too_small_for_float16_is_named_and_its_scale_saves_it():
    """Gradients 2^-24 times as large fall below float16's least number, 2^-24; times 2^k they come back exactly."""
    (x, y), model = batch(), mlp()
    lost = fs.trainability(model, x, y, loss=small_loss(2.0**-24), samples=8, dtype="float16")
    assert (lost.survival.frame.survives < 0.5).any() and (lost.survival.frame.scaled > 0.99).all()
    assert lost.verdict.kind == "does not train" and "float16 underflow" in lost.verdict.cause
    assert f"{lost.survival.loss_scale:,.0f}" in lost.verdict.advice
    heeded = fs.trainability(model, x, y, loss=small_loss(2.0**-24 * lost.survival.loss_scale), samples=8,
                             dtype="float16")
    np.testing.assert_array_equal(heeded.survival.frame.survives, lost.survival.frame.scaled)
    assert heeded.survival.loss_scale == 1 and "underflow" not in heeded.verdict.cause
    wide = fs.trainability(model, x, y, loss=small_loss(2.0**-24), samples=8, dtype="bfloat16")
    assert (wide.survival.frame.survives > 0.99).all()


def test_a_weight_that_has_no_part_in_the_loss_neither_survives_nor_is_lost():
    """A layer that nothing calls changes no number, and has no row."""
    model, (x, y) = mlp(), batch(8)
    apart = nn.ModuleDict({"model": model, "spare": nn.Linear(2, 2)})
    apart.forward = model.forward

    def survived(net: nn.Module) -> Survival:
        probe = Linearised(copy.deepcopy(net).double(), Inputs.of(x.double()), y, RandomState(x.device),
                           Objective("try", "cross_entropy", None))
        return survival("try", net, probe, "float16")

    alone, beside = survived(model), survived(apart)
    assert beside.frame["module"].tolist() == [f"model.{name}" for name in alone.frame["module"]]
    assert beside.frame.drop(columns="module").equals(alone.frame.drop(columns="module"))


def test_a_gradient_too_large_for_float16_survives_at_no_scale():
    x, y = batch()
    lost = fs.trainability(mlp(), x, y, loss=small_loss(2.0**40), samples=8, dtype="float16").survival
    assert lost.loss_scale == 1 and lost.frame.survives.min() < 0.5


def test_evaluation_mode_before_training_is_said_to_be_another_net():
    x, y = batch()
    assert "another net than the one that trains" in str(fs.trainability(batch_norm().eval(), x, y, samples=8).verdict)
    assert not fs.trainability(batch_norm(), x, y, samples=8).verdict.note


def test_branches_that_end_in_zeros_do_not_make_inputs_alike():
    model = Residual(6, 1.0)
    for layer in model.branches:
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)
    flow = fs.gradient_flow(model, *noise())
    assert flow.frame.activation_correlation.iloc[-2] == pytest.approx(1) and collapsed(flow) is None


def test_a_frozen_weight_with_a_bias_that_learns_is_not_cut_off():
    x, y = batch()
    model = mlp()
    model[0].weight.requires_grad_(False)
    assert "cut off" not in fs.trainability(model, x, y, samples=8).verdict.cause


# --- the largest rate of the first steps ------------------------------------------------------------------------------


def families() -> dict[str, nn.Module]:
    """Twenty nets of five families."""
    nets: dict[str, nn.Module] = {}
    for activation in (nn.ReLU, nn.Tanh):
        for layers in (1, 4):
            nets[f"plain {activation} {layers}"] = deep(layers, activation)
            nets[f"LayerNorm {activation} {layers}"] = deep(layers, activation, nn.LayerNorm)
            nets[f"BatchNorm {activation} {layers}"] = deep(layers, activation, nn.BatchNorm1d)
            nets[f"residual {activation} {layers}"] = Residual(layers, 0.5, gain=0.5 if activation is nn.Tanh else 1.0)
            body = [m for _ in range(layers) for m in (nn.Conv2d(8, 8, 3, padding=1), activation())]
            nets[f"convolutions {activation} {layers}"] = nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, stride=2), activation(), *body, nn.Flatten(),
                nn.Linear(72, 10))
    return nets


def bears(model: nn.Module, x: Tensor, y: Tensor, rate: float) -> bool:
    """20 steps of PyTorch's gradient descent never raise the loss above the first."""
    model = copy.deepcopy(model).double()
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=rate), []
    for _ in range(21):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.double()), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return all(loss <= losses[0] for loss in losses)


def test_both_ways_to_push_are_the_transpose_of_pulling():
    """<J u, v> = <u, J^T v>, of a net with a layer that has no part in its outputs."""
    net = Awkward().double().eval()
    net.register_module("spare", nn.Linear(2, 2).double())
    x, y = batch(6)
    one = Linearised(net, Inputs.of(x.double()), y, RandomState(x.device), Objective("try", "cross_entropy", None))
    draws = torch.Generator().manual_seed(0)
    u = [torch.randn(w.shape, generator=draws, dtype=w.dtype) for w in one.weights]
    v = torch.randn(one.outputs.shape, generator=draws, dtype=torch.float64)
    along = sum((a * b).sum() for a, b in zip(u, one.pull(v), strict=True)).item()
    for push in (one.push_forwards, one.push_through_backward):
        assert (push(u) * v).sum().item() == pytest.approx(along, rel=1e-12)
    assert not any(part.any() for part in one.pull(v)[-2:])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_rule_with_a_node_at_zero_has_all_moments_but_the_last(steps):
    """Golub & Meurant 2010: of the 2 n that Gauss' rule of n nodes has, e1' T^k e1, the first 2 n - 1, at any scale."""
    draws = torch.Generator().manual_seed(steps)
    diagonal, beside = (low + torch.rand(count, generator=draws).double() / 2   # positive definite, by Gershgorin
                        for low, count in ((3, steps), (1, steps - 1)))
    matrix = tridiagonal_matrix(list(diagonal), list(beside))
    rule = with_a_node_at_zero(matrix, top=4.0)
    assert rule.ratios.min() == pytest.approx(0, abs=1e-14) and not rule.exact
    for k in range(2 * steps - 1):
        moment = torch.linalg.matrix_power(matrix / 4, k)[0, 0].item()
        assert rule.shares @ rule.ratios**k == pytest.approx(moment, rel=1e-12)


def test_rows_of_the_jacobian_take_one_backward_pass():
    """They are what pulling one by one gives, and the last layer's weight sees one gradient for all of them."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    one = Linearised(net, Inputs.of(x), y, RandomState(x.device), Objective("try", "cross_entropy", None))
    unit, passes = torch.eye(2, dtype=torch.float64).view(2, *one.outputs.shape), []
    alone = [one.pull(v) for v in unit]
    one.parameters["2.weight"].register_hook(lambda g: passes.append(g))
    for rows, parts in zip(pull_rows(one, one.outputs, unit), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(rows, torch.stack(parts), rtol=1e-14, atol=0)
    assert len(passes) == 1


@pytest.mark.usefixtures("annotations_unchecked")   # a stand-in for the net
def test_steps_that_stay_below_the_first_loss_do_not_raise_it():
    """w^2 / 2 from w = 1: at rate 1 the first step ends in the minimum, and momentum 1/2 carries on to -1/2, below the
    first loss; at rate 3 one step ends at -2, above it, at an infinite rate nowhere.  The weight is put back."""
    w = nn.Parameter(torch.ones(1))
    net = SimpleNamespace(parameters={"w": w}, x=None, y=None, run=lambda _x: w,
                          objective=SimpleNamespace(value=lambda output, _y: (output**2 / 2).sum()))
    for rate, momentum, steps, raised in ((1.0, 0.5, 2, False), (3.0, 0.0, 1, True), (math.inf, 0.0, 1, True),
                                          (0.0, 0.0, 3, False)):
        assert FIRST_STEPS.raises(net, rate, momentum, steps) == raised
        assert w.item() == 1


@pytest.mark.slow
def test_the_first_steps_bear_the_learning_rate_and_not_twice_as_much():
    """Another bracket finds a rate within a factor of 2; where the loss rises in bands there is more than one."""
    torch.manual_seed(0)
    x, y = noise(48)
    for name, model in families().items():
        found = fs.trainability(model, x, y)
        assert found.rate_by == "steps" and found.loss < 5 * math.log(10)
        assert bears(model, x, y, found.learning_rate), name
        low, high = 1e-4, 1e3
        while high > 1.02 * low:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if bears(model, x, y, middle) else (low, middle)
        assert 0.5 < found.learning_rate / low < 2, name
