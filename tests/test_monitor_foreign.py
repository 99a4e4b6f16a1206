"""GradientMonitor on models that hold weights, and hand on tensors, in other ways than torch.nn's layers do."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES, batch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from flowstudy import GradientMonitor
from flowstudy.measure.monitor.norms import norm, norms, norms_of_rows
from flowstudy.measure.monitor.watched import QUANTITIES

ROUNDING = 1e-11  # float64 against float64 in another order


class Listed(nn.Module):
    """Weights in a list and in a dictionary, and none elsewhere."""

    def __init__(self):
        super().__init__()
        self.body = nn.ParameterList([nn.Parameter(torch.randn(FEATURES, FEATURES) / 4) for _ in range(5)])
        self.ends = nn.ParameterDict({"out": nn.Parameter(torch.randn(FEATURES, CLASSES))})
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for w in self.body:
            x = torch.tanh(x @ w)
        return self.out(x @ self.ends["out"])


class Holder(nn.Module):
    """Has weights and no forward."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(FEATURES, 6) / 4)


class Stage(nn.Module):
    """Computes with what a holder in a list holds."""

    def __init__(self):
        super().__init__()
        self.held = nn.ModuleList([Holder()])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.held[0].w)


class Complex(nn.Module):
    """A complex matrix on complex inputs; what follows takes the modulus."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(FEATURES, 6, dtype=torch.complex128))
        self.b = nn.Parameter(torch.randn(6, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.complex(x, x.flip(-1)) @ self.w + self.b).conj()  # conj: torch sets a bit, and leaves the numbers


class Modulus(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z.real**2 + z.imag**2).sqrt()


class Named(NamedTuple):
    index: Tensor
    hidden: Tensor


@dataclass
class Output:
    mask: Tensor
    hidden: Tensor


class Wrapped(nn.Module):
    """A layer that hands its output on inside of something."""

    def __init__(self, wrap: Callable[[Tensor], object]):
        super().__init__()
        self.w = nn.Parameter(torch.randn(FEATURES, 6) / 4)
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(torch.tanh(x @ self.w))


class Unwrap(nn.Module):
    def __init__(self, unwrap: Callable[[object], Tensor]):
        super().__init__()
        self.unwrap = unwrap

    def forward(self, output: object) -> Tensor:
        return self.unwrap(output)


class Doubling(nn.Module):
    """A parametrization with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((6, 1), 2.0))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


def parametrized_by_doubling() -> nn.Module:
    layer = nn.Linear(FEATURES, 6)
    parametrize.register_parametrization(layer, "weight", Doubling())
    return layer


class Case(NamedTuple):
    """A model; by the name of each layer, its class, its weights and what picks its tensor out of its output."""

    make: Callable[[], nn.Module]
    layers: dict[str, tuple[str, list[str], Callable[[object], Tensor]]]


def itself(output: Tensor) -> Tensor:
    return output


def wrapped(wrap: Callable[[Tensor], object], unwrap: Callable[[object], Tensor]) -> Case:
    return Case(lambda: nn.Sequential(Wrapped(wrap), Unwrap(unwrap), nn.Linear(6, CLASSES)),
                {"0": ("Wrapped", ["0.w"], unwrap), "2": ("Linear", ["2.weight"], itself)})


def normed(**options: bool) -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(FEATURES, 6, **options)), nn.Tanh(),
                         nn.Linear(6, CLASSES))


ORIGINALS = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]
CASES = {
    "list of weights": Case(Listed, {"": ("Listed", [*(f"body.{i}" for i in range(5)), "ends.out"], itself)}),
    "list beside a layer": Case(
        lambda: nn.Sequential(Listed(), nn.Linear(CLASSES, CLASSES)),
        {"0": ("Listed", [*(f"0.body.{i}" for i in range(5)), "0.ends.out"], itself),
         "1": ("Linear", ["1.weight"], itself)}),
    "holder without forward": Case(lambda: nn.Sequential(Stage(), nn.Linear(6, CLASSES)),
                                   {"0": ("Stage", ["0.held.0.w"], itself), "1": ("Linear", ["1.weight"], itself)}),
    "weight norm": Case(normed, {"0": ("Linear", ORIGINALS, itself), "2": ("Linear", ["2.weight"], itself)}),
    "weight norm, no bias": Case(lambda: normed(bias=False),
                                 {"0": ("Linear", ORIGINALS, itself), "2": ("Linear", ["2.weight"], itself)}),
    "parametrization with a weight": Case(
        lambda: nn.Sequential(parametrized_by_doubling(), nn.Linear(6, CLASSES)),
        {"0": ("Linear", ["0.parametrizations.weight.original", "0.parametrizations.weight.0.scale"], itself),
         "1": ("Linear", ["1.weight"], itself)}),
    "complex": Case(lambda: nn.Sequential(Complex(), Modulus(), nn.Linear(6, CLASSES)),
                    {"0": ("Complex", ["0.w"], itself), "2": ("Linear", ["2.weight"], itself)}),
    "dict": wrapped(lambda h: {"mask": h > 0, "h": h}, lambda d: d["h"]),
    "list": wrapped(lambda h: [h], lambda found: found[0]),
    "indices first": wrapped(lambda h: (h.argmax(1), h), lambda found: found[1]),
    "named tuple": wrapped(lambda h: Named(h.argmax(1), h), lambda found: found.hidden),
    "dataclass": wrapped(lambda h: Output(h > 0, h), lambda found: found.hidden),
    "nested": wrapped(lambda h: {"all": (None, [{"h": h}])}, lambda found: found["all"][1][0]["h"]),
}


def square_sum(tensors: list[Tensor]) -> float:
    return sum(float((np.abs(t.detach().resolve_conj().numpy())**2).sum()) for t in tensors)


def step_by_hand(model: nn.Module, layers: dict, x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """The five columns of one step of plain gradient descent, by autograd and numpy's complex modulus."""
    parameters, outputs = dict(model.named_parameters()), {}

    def keep(name: str, output: Tensor) -> None:
        output.retain_grad()
        outputs[name] = output

    for name, (_, _, pick) in layers.items():
        model.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name, pick=pick: keep(name, pick(output)))
    F.cross_entropy(model(x), y).backward()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    rows = {}
    for name, (_, weights, _) in layers.items():
        gradient = math.log10(square_sum([parameters[w].grad for w in weights])) / 2
        moved = square_sum([parameters[w] - before[w] for w in weights]) / square_sum([before[w] for w in weights])
        rows[name] = [gradient, gradient, math.sqrt(moved), math.log10(square_sum([outputs[name].grad])) / 2,
                      square_sum([outputs[name]]) / outputs[name].numel()]
    return rows


@pytest.mark.parametrize("name", CASES)
def test_every_weight_is_recorded_with_the_layer_that_computes_with_it(name):
    """A row per layer, its class as written, and every column autograd's; no row for what only holds a weight."""
    torch.manual_seed(0)
    model, (x, y) = CASES[name].make().double(), batch()
    twin, x = copy.deepcopy(model), x.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientMonitor(model) as monitor:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    expected = step_by_hand(twin, CASES[name].layers, x, y)
    assert monitor.frame["module"].tolist() == list(expected)
    assert monitor.frame["type"].tolist() == [kind for kind, _, _ in CASES[name].layers.values()]
    np.testing.assert_allclose(monitor.frame[list(QUANTITIES)].to_numpy(float), list(expected.values()), rtol=ROUNDING)
    recorded = {w for _, weights, _ in CASES[name].layers.values() for w in weights}
    assert recorded == {w for w, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_complex_quantity_by_itself_is_what_it_is_among_all(quantity):
    """Gradient norms alone hook the weights, not the layers: complex ones as well."""
    found = []
    for quantities in (QUANTITIES, [quantity]):
        torch.manual_seed(0)
        model, (x, y) = CASES["complex"].make().double(), batch()
        with GradientMonitor(model, quantities=quantities) as monitor:
            F.cross_entropy(model(x.double()), y).backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        found.append(monitor.frame[quantity].tolist())
    assert found[0] == pytest.approx(found[1], rel=1e-14) and np.isfinite(found[0]).all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(3,), (2, 5, 8, 8), (20_000,)])
@pytest.mark.parametrize("conjugate", [False, True])
def test_norms_of_complex_tensors_are_real(dtype, shape, conjugate):
    """|z|^2 = z conj(z), summed by numpy in complex128; alone, among others, as rows of a stack."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=dtype) * 10.0**power for power in (0, -3, 2)]
    tensors = [t.conj() for t in tensors] if conjugate else tensors
    expected = [math.sqrt(square_sum([t.to(torch.complex128)])) for t in tensors]
    tolerance = 1e-5 if dtype == torch.complex64 else 1e-13
    assert [norm(t) for t in tensors] == pytest.approx(expected, rel=tolerance)
    assert norms(tensors) == pytest.approx(expected, rel=tolerance)
    assert norms_of_rows(torch.stack(tensors)) == pytest.approx(expected, rel=tolerance)


def test_a_loss_of_a_later_output_alone_is_noticed():
    """Of an LSTM's last state: its weights have autograd's gradient, its sequence of outputs no error signal."""
    torch.manual_seed(0)
    model, x = nn.LSTM(FEATURES, 3, batch_first=True).double(), torch.randn(2, 5, FEATURES, dtype=torch.float64)
    with GradientMonitor(model) as monitor:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(x)[1][0].square().sum().backward()
        true = math.hypot(*(model.get_parameter(name).grad.norm().item() for name in ("weight_ih_l0", "weight_hh_l0")))
        optimizer.step()
    (row,) = monitor.frame.itertuples()
    assert 10**row.log10_weight_gradient_norm == pytest.approx(true, rel=ROUNDING)
    assert math.isnan(row.log10_error_signal_norm) and math.isfinite(row.activation_mean_square)


def test_a_call_inside_vmap_is_left_alone():
    """Its layer's weights are seen, what it puts out is not; the loop runs as it would."""

    class Inside(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.func.vmap(self[0])(x))

    model, (x, y) = Inside(nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with GradientMonitor(model) as monitor:
        F.cross_entropy(model(x), y).backward()
        norm_of_weights = model[0].weight.grad.double().norm().log10().item()
        optimizer.step()
    inside, after = monitor.frame.to_dict("records")
    assert inside["log10_weight_gradient_norm"] == pytest.approx(norm_of_weights, rel=1e-5)
    assert math.isnan(inside["activation_mean_square"]) and math.isnan(inside["log10_error_signal_norm"])
    assert math.isfinite(after["activation_mean_square"]) and math.isfinite(after["log10_error_signal_norm"])


def test_weights_of_one_number_do_not_end_the_training_that_is_watched():
    """A temperature or a scale of shape (): its norm is its size."""
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.temperature = nn.Linear(FEATURES, CLASSES), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.temperature

    torch.manual_seed(0)
    model, (x, y) = Scaled(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with GradientMonitor(model) as monitor:
        F.cross_entropy(model(x), y).backward()
        gradient = model.temperature.grad.item()
        optimizer.step()
    frame = monitor.frame
    row = frame[frame["module"].eq("temperature") | frame["module"].eq("")]
    assert len(row) and math.isclose(row["update_to_weight"].max(), 0.5 * abs(gradient) / 2.0, rel_tol=1e-6)
